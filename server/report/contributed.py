"""Contributed: what each modality brings to the number by which a run is judged, in words and bars.

in        Contributions of a RunRecord
out       for the page a table of steps from the model's constant answer to all modalities; lines for the terminal
relies on contributions.py: the Shapley values add up to the way from the one to the other
"""

from markupsafe import Markup

from server.headline import headline_of
from server.records import Contribution, Contributions, RunRecord
from server.report.numbers import metric_name, metric_text
from server.report.plots import step_bar
from server.report.tables import BarRow, BarTable


def contribution_table(record: RunRecord) -> BarTable | None:
    """A row for each modality, the greatest Shapley value first, between the model's constant answer and its best."""
    found = record.test.contributions
    if found is None:
        return None
    metric, sign = metric_name(found.metric), -1.0 if headline_of(record.run.data).is_error else 1.0
    order = sorted(found.by_modality, key=lambda name: -found.by_modality[name].shapley)
    ends, at = [found.nothing], found.nothing
    for name in order:
        at += sign * found.by_modality[name].shapley
        ends.append(at)
    ends[-1] = found.everything
    # 1 where the metric ends there, and room for steps that lead outside
    low, high = min(0.0, *ends), max(ends) if headline_of(record.run.data).largest is None else max(1.0, *ends)

    def bar(start: float, end: float, *, hurts: bool = False) -> Markup:
        return step_bar(start, end, low=low, high=high, is_bad=hurts)

    total = f"{record.test.overall.num_samples:,}"
    rows = [BarRow("nothing", total, bar(0.0, found.nothing), metric_text(found.nothing), "", ("",))]
    for name, start, end in zip(order, ends, ends[1:], strict=False):
        each = found.by_modality[name]
        alone = record.test.by_modalities.get(name)
        rows.append(
            BarRow(
                name=name,
                num_samples=f"{alone.num_samples:,}" if alone else "0",
                bar=bar(start, end, hurts=each.shapley < 0),
                value=signed_text(each.shapley),
                interval=_beneath(each),
                others=(_with_interval(signed_text(each.drop_one), each.drop_one_interval),),
            )
        )
    whole = bar(0.0, found.everything)
    rows.append(BarRow("all together", total, whole, metric_text(found.everything), "", ("",), is_all=True))
    return BarTable("Modality", "Brings", ("Missed without it",), tuple(rows), _note(found, metric=metric))


def contribution_line(record: RunRecord) -> tuple[str, str] | None:
    """What the terminal says: whose parts they are, and "photo +0.310, words +0.120"."""
    found = record.test.contributions
    if found is None:
        return None
    order = sorted(found.by_modality.items(), key=lambda item: -item[1].shapley)
    parts = ", ".join(f"{name} {contribution_text(each)}" for name, each in order)
    return f"brought to {metric_name(found.metric)}", f"{parts}, from {metric_text(found.nothing)} on"


def contribution_text(found: Contribution | None) -> str:
    """A Shapley value with its sign, with its standard error and its interval where it has them."""
    if found is None:
        return "–"
    error = "" if found.standard_error is None else f" ± {metric_text(found.standard_error)}"
    return _with_interval(signed_text(found.shapley) + error, found.shapley_interval)


def _beneath(found: Contribution) -> str:
    """What stands below a Shapley value."""
    error = "" if found.standard_error is None else f"± {metric_text(found.standard_error)}"
    return ", ".join(text for text in (_range_text(found.shapley_interval), error) if text)


def _with_interval(text: str, interval: tuple[float, float] | None) -> str:
    return text if interval is None else f"{text} ({_range_text(interval)})"


def _range_text(interval: tuple[float, float] | None) -> str:
    """`−0.012 to +0.047`, or nothing."""
    return "" if interval is None else " to ".join(map(signed_text, interval))


def signed_text(value: float) -> str:
    """Three decimals with a sign; 0 has none."""
    text = metric_text(abs(value))
    if text == metric_text(0.0):
        return text
    return f"+{text}" if value > 0 else f"−{text}"


def _note(found: Contributions, *, metric: str) -> str:
    drawn = "" if found.orders is None else f" Estimated from {found.orders} orders, ± one standard error."
    chance = "Small differences may be chance: these have no intervals."
    if any(each.shapley_interval for each in found.by_modality.values()):
        chance = (
            "Ranges are 95 % intervals: how far each would move with other people in the test part, the same model "
            "shown the same modalities; one that holds 0 may be chance. What another training would give they do not "
            "tell."
        )
    return (
        f"Brings: how much better {metric} gets when this modality comes in, averaged over all orders in which they "
        "could come (Shapley values). From the answer that the model always gives when nothing is present, the steps "
        "add up to what it reaches with all. Missed without it: how much worse the model is without this one while it "
        "has all others; little, where another says the same. Measured on all samples, those too that lack a modality, "
        "so that one which few samples have brings little. "
        f"{chance}{drawn}"
    )
