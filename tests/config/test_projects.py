"""Other projects' packages and keys: a toy package, and those that come with Detectron2."""

import sys

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage

from skd import add_skd_config, build_teacher, distill, student_config, train_net
from skd.config import projects, read_config, use_project
from skd.modeling.teacher import FrozenTeacher
from skd.study.common.command import run_command
from tests.helpers import batch, distilling, save_detector, tiny_config

PACKAGE = """
from detectron2.config import CfgNode as CN
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

def add_toy_config(cfg):
    cfg.MODEL.TOY = CN()
    cfg.MODEL.TOY.SCALE = 1.0

@META_ARCH_REGISTRY.register()
class ToyRCNN(GeneralizedRCNN):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.scale = cfg.MODEL.TOY.SCALE
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder of a package `toy_project`, which nobody has imported yet."""
    (tmp_path / "toy_project.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(projects, "_used", {})
    monkeypatch.setattr(projects, "_named", set())
    yield tmp_path
    sys.modules.pop("toy_project", None)
    META_ARCH_REGISTRY._obj_map.pop("ToyRCNN", None)


def toy_config():
    cfg = tiny_config("faster_rcnn")
    projects.declare(cfg, ["toy_project"])
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.TOY.SCALE = "ToyRCNN", 2.0
    return cfg


def write(cfg, path):
    path.write_text(student_config(cfg).dump())
    return str(path)


def test_a_project_of_student_and_teacher(toy):
    files = save_detector(toy_config(), toy / "teacher")
    use_project("toy_project:add_toy_config")
    cfg = read_config(write(toy_config(), toy / "student.yaml"))
    cfg = distilling(cfg, files)
    assert cfg.MODEL.TOY.SCALE == 2
    model = build_model(cfg).train()
    assert model.scale == 2 and model.teacher.detector.scale == 2
    with EventStorage():
        losses = model(batch())
    assert sum(v for k, v in losses.items() if "distill" in k) > 0


def test_unknown_keys_name_the_project_that_is_missing(toy):
    path = write(toy_config(), toy / "student.yaml")
    with pytest.raises(KeyError, match=r"student.yaml.*MODEL.TOY.*--project MODULE:FUNCTION"):
        read_config(path)
    (toy / "trident.yaml").write_text("VERSION: 2\nMODEL: {TRIDENT: {NUM_BRANCH: 3}}\n")
    with pytest.raises(KeyError, match="TRIDENT.*--project TridentNet"):
        read_config(str(toy / "trident.yaml"))


def test_a_teacher_alone_has_a_project(toy):
    files = save_detector(toy_config(), toy / "teacher")
    cfg = distilling(tiny_config(), files)
    with pytest.raises(ValueError, match="teacher's config.*MODEL.TOY"):
        FrozenTeacher(cfg)
    cfg.MODEL.TEACHER.PROJECTS = ["toy_project"]  # as a YAML file may have it
    with pytest.raises(ValueError, match="MODEL.TEACHER.PROJECTS.*only a YAML config names"):
        FrozenTeacher(cfg)
    distill(cfg, *files, projects=["toy_project"])
    assert build_model(cfg).teacher.detector.scale == 2
    assert "TOY" not in cfg.MODEL and "toy" not in student_config(cfg).dump()
    teacher = build_teacher(files[0], ["toy_project"], weights=files[1])
    assert teacher.detector.scale == 2


def test_a_yaml_file_alone_imports_nothing(toy):
    cfg = tiny_config()
    cfg.MODEL.STUDENT.PROJECTS = ["toy_project"]  # the teacher's: see above
    (toy / "evil.yaml").write_text(cfg.dump())
    with pytest.raises(ValueError, match="MODEL.STUDENT.PROJECTS names 'toy_project'"):
        read_config(str(toy / "evil.yaml"))
    assert "toy_project" not in sys.modules


def test_a_wrong_name_of_a_project_is_told(toy):
    for name, words in (
        ("no_such_package", "no_such_package.*PYTHONPATH"),
        ("toy_project:add_nothing", "no function 'add_nothing'.*add_toy_config"),
        ("DensePose", "projects/DensePose of Detectron2's repository"),
    ):
        with pytest.raises(ImportError, match=words):
            use_project(name)
    sys.modules["toy_project"].add_b_config = print
    with pytest.raises(ImportError, match="add_toy_config, add_b_config.*name the one"):
        use_project("toy_project")

    assert run_command(lambda: use_project("no_such_package")) == 2  # told in one line


@pytest.mark.parametrize("name,key", [(n, k) for k, n in list(projects.PROJECT_OF_KEY.items())[:3]])
def test_projects_that_come_with_detectron2(name, key, toy):
    """Declared by name, and by the keys of a file."""
    if name == "Panoptic-DeepLab":
        pytest.importorskip("panopticapi")
    content = {"VERSION": 2, "MODEL": {"WEIGHTS": "x"}}
    with_key = get_cfg()
    projects.load_project(name)(with_key)
    node = content
    *parents, last = key.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    value = with_key
    for part in key.split("."):
        value = value[part]
    node[last] = value
    (toy / "config.yaml").write_text(CfgNode(content).dump())
    assert last in read_config(str(toy / "config.yaml")).dump()
    use_project(name)
    (toy / "plain.yaml").write_text("VERSION: 2\n")
    assert last in read_config(str(toy / "plain.yaml")).dump()


def test_train_net_notes_projects_and_takes_them_again(toy, teacher_files):
    """A run's config.yaml names them; with it the same flag is needed, and said."""
    student = write(toy_config(), toy / "student.yaml")
    args = ["--config-file", student, "--project", "toy_project", "--teacher", teacher_files[0]]
    args += ["--teacher-weights", teacher_files[1], "OUTPUT_DIR", str(toy / "run")]
    cfg = train_net.setup(train_net.argument_parser().parse_args(args))
    assert cfg.MODEL.STUDENT.PROJECTS == ["toy_project"]
    assert "toy_project" not in (toy / "run" / "student.yaml").read_text()
    again = read_config(str(toy / "run" / "config.yaml"))
    assert again.MODEL.TOY.SCALE == 2 and again.MODEL.STUDENT.PROJECTS == ["toy_project"]
    projects._used.clear()
    with pytest.raises(ValueError, match="give --project toy_project"):
        read_config(str(toy / "run" / "config.yaml"))
    use_project("toy_project:add_toy_config")  # the same package
    assert read_config(str(toy / "run" / "config.yaml")).MODEL.TOY.SCALE == 2
    with pytest.raises(ValueError, match="names 'toy_project:print'"):
        projects.check_allowed(["toy_project:print"], "KEY")


def test_a_project_that_fails_to_add_its_keys_is_named(toy):
    (toy / "toy_project.py").write_text("def add_toy_config(cfg):\n    cfg.MODEL.NOTHING.TOY = 1\n")
    with pytest.raises(ValueError, match="project 'toy_project' fails when it adds.*NOTHING"):
        projects.declare(get_cfg(), ["toy_project"])


def mean_teacher(cfg):
    cfg.MODEL.TEACHER = CfgNode({"MOMENTUM": 0.999})


def detic(cfg):
    cfg.MODEL.TIMM = CfgNode(
        {"BASE_NAME": "resnet50", "NAME": "r", "PRETRAINED": False, "NORM": "FrozenBN"}
    )


@pytest.mark.parametrize("first", [True, False])
def test_keys_that_collide_are_told_apart_or_refused(first):
    cfg = get_cfg()
    mean_teacher(cfg) if first else add_skd_config(cfg)
    with pytest.raises(ValueError, match="MODEL.TEACHER .*another project's.*skd.distilling"):
        add_skd_config(cfg) if first else mean_teacher(cfg)
        distill(cfg, "teacher.yaml")
    assert cfg.MODEL.TEACHER.MOMENTUM == student_config(cfg).MODEL.TEACHER.MOMENTUM == 0.999


@pytest.mark.parametrize("first", [True, False])
def test_a_node_that_both_can_have(first):
    cfg = get_cfg()
    for add in (detic, add_skd_config) if first else (add_skd_config, detic):
        add(cfg)
    distill(cfg, "teacher.yaml")
    assert student_config(cfg).MODEL.TIMM.BASE_NAME == "resnet50"
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    with pytest.raises(ValueError, match="MODEL.TIMM is another project's"):
        build_model(student_config(cfg))
