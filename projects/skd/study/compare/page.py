"""The page of the HTML report, for jinja2 with autoescape."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Comparison of distillation methods</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto }
#grid { display: flex; flex-wrap: wrap; gap: 8px }
figure { margin: 0; width: 160px; font-size: 12px }
figure img { width: 100%; display: block }
input[type=range] { width: 320px; vertical-align: middle }
pre { background: #f5f5f5; padding: .6em; overflow-x: auto }
</style>
</head>
<body>
<h1>Comparison of distillation methods</h1>
<p>Mean and 95% confidence interval (Student's t) over the seeds; differences are paired by
seed. A run that diverged counts as 0.</p>
{% for comparison in comparisons %}
<h2>{{ comparison.name }}</h2>
{% for title, header, rows in comparison.tables %}{% if title %}<h3>{{ title }}</h3>{% endif %}
<table><thead><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endfor %}<h3>AP over the iterations</h3>
{{ comparison.curves }}
{% endfor %}
{% if pictures.images %}<h2>Image by image</h2>
<p>
<label>image <input id="image" type="range" min="0" value="0"></label> <output id="number"></output>
&nbsp; <label><input type="radio" name="show" value="0" checked> predictions</label>
<label><input type="radio" name="show" value="1"> spatial attention</label>
</p>
<div id="grid"></div>
<p>The first seed of each method. Predictions with a score above 0.4; attention is the mean of
absolute features over the channels of the map that is named, from blue (least) to red (most).</p>
{% endif %}<h2>Made by</h2>
<pre>{{ command }}</pre>
{% if pictures.images %}<script>
const pictures = {{ pictures | tojson }};
const slider = document.getElementById("image");
const radios = [...document.getElementsByName("show")];
slider.max = pictures.images.length - 1;
const grid = document.getElementById("grid");
for (const model of pictures.models) {
  const figure = document.createElement("figure");
  const image = figure.appendChild(document.createElement("img"));
  image.alt = model;
  figure.appendChild(document.createElement("figcaption")).textContent = model;
  grid.appendChild(figure);
}
const captions = [...grid.querySelectorAll("figcaption")];
function render() {
  const models = pictures.images[slider.value] || [];
  const show = radios.findIndex((radio) => radio.checked);
  grid.querySelectorAll("img").forEach((img, i) => { if (models[i]) img.src = models[i][show]; });
  captions.forEach((caption, i) => {
    caption.textContent = pictures.models[i] + (show ? `: ${pictures.maps[i]}` : "");
  });
  document.getElementById("number").textContent =
    `${Number(slider.value) + 1} of ${pictures.images.length}`;
}
// report.html#image=2&show=1 opens at the third image's attention
const wanted = new URLSearchParams(location.hash.slice(1));
if (wanted.has("image")) slider.value = wanted.get("image");
if (radios[wanted.get("show")]) radios[wanted.get("show")].checked = true;
slider.addEventListener("input", render);
radios.forEach((radio) => radio.addEventListener("change", render));
render();
</script>
{% endif %}</body>
</html>
"""
