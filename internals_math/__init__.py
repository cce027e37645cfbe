"""The verified core: one module of pure PyTorch functions per topic. Never imports manim."""
