"""Messages: what server and site say to each other, as typed records; all that may ever be in a reply is here.

in        a round that the server plans; an update that a site protected
out       requests and replies (training, noisy counts, introductions), Refusal; wire.py makes records of them
relies on config.py for the run's settings, on row.py for how an update lies in memory
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from jaxtyping import Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from shared.config import Clipping, NoiseKind, RunConfig
from shared.forms import RUN_ID, SITE_NAME
from shared.row import view_of_all
from shared.settings import Name, NamePattern, Settings
from shared.version import VERSION

PROTOCOL_VERSION = 5
VERSION_FORM = r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,39}$"
# both are shown on the other side's terminal: no control characters, and no number of a thousand digits
_SPOKEN_VERSION, _LAST_PROTOCOL = r"^[0-9A-Za-z.+-]{0,40}$", 999_999
NotAccepted = Literal["not-enrolled", "key-expired", "wrong-signature", "name-taken", "version-mismatch"]
NOT_ACCEPTED: Mapping[NotAccepted, str] = {
    "not-enrolled": "no key is enrolled under its name; hand NAME.pub to the server's operator (motet server enrol)",
    "key-expired": "its key has expired; make a new one (motet site key) and hand NAME.pub to the server's operator",
    "wrong-signature": "its key is not the one enrolled under its name; compare the fingerprints, or enrol the new one",
    "name-taken": "another site answers under its name; name = in site.toml must be unlike every other site's",
    "version-mismatch": "it runs another release of Motet; install the same one as the server",
}
"""why a server takes no introduction of a site, and what to do about it"""

Shapes = Mapping[str, tuple[int, ...]]
"""parameter name -> shape: what a message may and must hold"""


class Spoken(Settings):
    """What the first messages of every version say alike, so that a mismatch can be named by both sides."""

    model_config = ConfigDict(extra="ignore")

    protocol_version: int = Field(ge=0, le=_LAST_PROTOCOL)
    version: str = Field(default="", pattern=_SPOKEN_VERSION)
    purpose: str | None = None


class HelloRequest(Settings):
    """Asks a site who it is; or tells one why its introduction was not accepted."""

    protocol_version: int
    version: str = Field(pattern=VERSION_FORM)
    purpose: Literal["hello"] = "hello"
    nonce: str = Field(pattern=r"^[0-9a-f]{64}$", description="drawn anew for each message, and signed by the site")
    not_accepted: NotAccepted | None = Field(default=None, description="the site tells its owner")


class OtherVersion(Settings):
    """In place of an introduction, from a site whose version does not work with the server's."""

    protocol_version: int = Field(ge=0, le=_LAST_PROTOCOL)
    version: str = Field(default="", pattern=_SPOKEN_VERSION)


class Hello(Settings):
    """What a site says of itself before the first round; all of it stands in the owner's settings as public."""

    protocol_version: int
    version: str = Field(default=VERSION, pattern=VERSION_FORM)
    site: str = Field(pattern=SITE_NAME)
    modalities: tuple[Name, ...] = Field(min_length=1, max_length=64)
    nominal_size: int | None = Field(default=None, ge=1, description="of the unit that the owner protects; public")
    nominal_modality_sizes: dict[Name, int] = Field(
        default={}, max_length=64, description="modality -> about how many rows have it, where the owner says so"
    )
    tasks: tuple[Name, ...] | None = Field(
        default=None, max_length=1000, description="of several tasks, those that rows here answer; None: all"
    )
    frozen: tuple[NamePattern, ...] = Field(
        default=(), max_length=1000, description="patterns of the names of parameters that are not trained here"
    )
    signature: str | None = Field(
        default=None,
        pattern=r"^(?:[0-9a-f]{2}){1,200}$",
        description="of all the above and the server's nonce, by the site's key; simulated sites have none",
    )

    def signed_text(self, nonce: str) -> bytes:
        """What the signature is of."""
        # PRIVACY: the nonce, or an introduction that was overheard could be used again.
        # test_a_replayed_introduction_is_refused
        return f"motet hello\n{nonce}\n{self.model_dump_json(exclude={'signature'})}".encode()


class RequestHeader(Settings):
    """All of a train request but the weights."""

    protocol_version: int
    run: RunConfig
    run_id: str = Field(pattern=RUN_ID)
    round_number: int = Field(ge=1, le=100_000)
    attempt: int = Field(default=0, ge=0, le=2**31, description="how often this round was begun before")
    planned_rounds: int = Field(ge=1, le=100_000, description="most rounds that this run will ask of this site")
    clip_norm: float | None = Field(
        default=None, ge=1e-6, le=1e6, description="adaptive clipping of records or subjects: the norm of this round"
    )
    site_clip_norm: float | None = Field(
        default=None, ge=1e-6, le=1e6, description="unit site: largest L2 norm of the whole update in this round"
    )


class StatisticsHeader(Settings):
    """All of a request for noisy counts, before the first round."""

    protocol_version: int
    run: RunConfig
    run_id: str = Field(pattern=RUN_ID)
    attempt: int = Field(default=0, ge=0, le=2**31)
    planned_rounds: int = Field(ge=1, le=100_000, description="as in the train requests that follow")


class PrivacyStatement(Settings):
    """How a site protected its update: the mechanism of the whole run, and what it has spent in all."""

    unit: Literal["record", "subject"]
    epsilon: float = Field(ge=0, description="upper bound over everything ever released about this data set")
    delta: float = Field(gt=0, lt=1)
    clipping: Clipping = "flat"
    clip_norm: float = Field(gt=0)
    noise_multiplier: float = Field(gt=0, description="of all that a step releases, the count of adaptive clipping too")
    sample_rate: float = Field(gt=0, le=1)
    steps_per_round: int = Field(ge=1)
    accountant: str
    noise: NoiseKind = "float64"
    reproducible_noise: bool
    cap_epsilon: float | None = Field(default=None, gt=0, description="the owner's cap, where the owner tells it")
    epsilon_before: float | None = Field(
        default=None, ge=0, description="spent before this run, where the owner tells it"
    )


class ReplyHeader(Settings):
    """The allow-list: every number that may leave a site beside its update; only the last two come from records."""

    protocol_version: int
    run_id: str
    round_number: int
    nominal_size: int = Field(ge=1)
    privacy: PrivacyStatement | None = Field(description="None: the update is not protected by the site")
    unclipped_share: float | None = Field(
        default=None, description="adaptive clipping of records or subjects: noisy, paid for in the ledger"
    )
    is_within_clip: bool | None = Field(
        default=None, description="adaptive clipping of sites: exact, for the server that is trusted to add the noise"
    )


class StatisticsReply(Settings):
    """A site's noisy counts, and how they were protected."""

    protocol_version: int
    run_id: str
    counts: tuple[float, ...] = Field(
        min_length=1, max_length=100_000, description="records or subjects of each class; of a rating, their number"
    )
    privacy: PrivacyStatement


@dataclass(frozen=True)
class TrainRequest:
    """A round asked of one site, with the weights of all parameters that it trains and the tensors it is given."""

    header: RequestHeader
    weights: dict[str, Tensor]
    kept: tuple[str, ...] = ()
    """names of those in `weights` that the update does not hold: given ones, and what the site keeps to itself"""

    @cached_property
    def update_shapes(self) -> Shapes:
        """What the update must hold."""
        return {name: tuple(value.shape) for name, value in self.weights.items() if name not in self.kept}


@dataclass(frozen=True)
class TrainReply:
    """A site's protected update: new minus old, by parameter name."""

    header: ReplyHeader
    update: dict[str, Tensor]

    @cached_property
    def row(self) -> Shaped[Tensor, "P"] | None:
        """The update as one flat view, looked for once; None where its tensors do not lie one behind the other."""
        return view_of_all(list(self.update.values()))


@dataclass(frozen=True)
class Refusal:
    """A site takes no part; the code is all it says."""

    code: str


def reply_fields(reply: TrainReply) -> tuple[str, ...]:
    """Names of everything in a reply that holds a value, numbers first; the report lists them."""
    header = tuple(name for name, value in reply.header if value is not None and name != "privacy")
    privacy = tuple(name for name, value in reply.header.privacy or () if value is not None)
    return _fields(header, privacy, tuple(reply.update))


@lru_cache(maxsize=256)
def _fields(header: tuple[str, ...], privacy: tuple[str, ...], update: tuple[str, ...]) -> tuple[str, ...]:
    """One object for all replies that hold the same."""
    return (
        *sorted(header),
        *(f"privacy.{name}" for name in sorted(privacy)),
        *(f"update.{name}" for name in update),
    )
