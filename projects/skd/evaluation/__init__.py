from .build import build_evaluator, write_results

__all__ = ["build_evaluator", "write_results"]
