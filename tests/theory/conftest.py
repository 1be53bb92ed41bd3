"""Property tests draw the same examples every time, and no example fails for being slow on a busy machine."""

from hypothesis import settings

settings.register_profile("theory", deadline=None, derandomize=True)
settings.load_profile("theory")
