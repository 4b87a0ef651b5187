"""Examples take the time they take: a deadline for each would say more about the machine than about us."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
