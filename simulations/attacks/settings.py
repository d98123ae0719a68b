"""Attack settings: what some simulated sites do in place of what they are asked; no deployment has any.

in        the `attack` part of a scenario
out       AttackSettings, beside the run's settings and never in them: those are sent to every site
relies on plan.py for who is hostile
"""

from typing import Literal

from pydantic import Field

from shared.settings import Settings

Kind = Literal["scaled", "sign-flipped", "constant", "not-a-number", "other-name", "label-flipped"]


class AttackSettings(Settings):
    """What which share of the simulated sites does."""

    kind: Kind = Field(
        description="scaled: the update times `factor`; sign-flipped: times -`factor`; constant: every number `factor` "
        "times the update's root mean square; not-a-number: NaN throughout; other-name: introduces itself as another "
        "site; label-flipped: trains as asked, on rows whose answers are all wrong"
    )
    share: float = Field(default=0.2, ge=0, le=1, description="of the sites, to the nearest whole number")
    factor: float = Field(default=10.0, gt=0, le=1e6)
    seed: int = Field(default=0, ge=0, description="of who is hostile; a larger share takes in those of a smaller one")
