"""What holds for all tests: a loaded machine is no failure, so hypothesis draws without a deadline.

`--hypothesis-profile=fresh` draws the random modules of test_compiler_random.py anew, which are otherwise the same.
"""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.register_profile("fresh", deadline=None, print_blob=True)
settings.load_profile("patient")
