"""What holds for all tests: a loaded machine is no failure, so hypothesis draws without a deadline."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
