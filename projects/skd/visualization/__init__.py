"""
Pictures.

    attention.py  a model's attention over its images
"""
