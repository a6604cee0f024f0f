"""The gate: whether a newly trained model takes the champion's place.

It does only where the difference is more than chance on the same people, no site gets worse, and its probabilities
mean what they say. On a tie the champion stays: at a few hundred people only large differences can be told from chance.
"""

from dataclasses import dataclass

# A site's ROC-AUC may not fall by more than this.
AUC_LOSS_ALLOWED = 0.03
CALIBRATION_SLOPE = (0.8, 1.3)
SIGNIFICANCE = 0.05
# Nobody reaches these figures honestly on these features: above them, something of the answer is among the questions.
LEAK_AUC, LEAK_ACCURACY = 0.95, 0.90
# Where answers are dealt out by chance there is nothing to learn.
CANARY = (0.47, 0.53)


@dataclass(frozen=True)
class Decision:
    """What becomes of a model version: `promoted`, `kept champion` or `refused`, and why, in a sentence or two."""

    outcome: str
    reason: str


Scores = dict[str, dict[str, float | None]]


def alarms(challenger: Scores, prevalence: float, canary: float, sites: dict[str, Scores]) -> list[str]:
    """Return what says that data or method are broken, so that no score means anything; empty where all is well.

    challenger: cross-validated scores; prevalence: the share of people with disease; canary: mean ROC-AUC after the
    diagnoses were shuffled; sites: scores at the batches outside the training batches, of those that have enough people of
    both kinds.
    """
    found = []
    # Where nearly everybody is of one kind, always saying so is right that often.
    most_accurate = max(LEAK_ACCURACY, (1 + max(prevalence, 1 - prevalence)) / 2)
    for score, most in (("auc", LEAK_AUC), ("accuracy", most_accurate)):
        value = challenger[score]["value"]
        if value is not None and value > most:
            found.append(
                f"leak: the cross-validated {score} is {value:.3f}, above {most:.3g}, which nobody reaches honestly; look for "
                "copies of the same person, or for a column that follows from the diagnosis"
            )
    low, high = CANARY
    if not low <= canary <= high:
        found.append(f"leak: with shuffled diagnoses the AUC is {canary:.3f}, outside {low} to {high}: what is held out is seen")
    for site, results in sites.items():
        if results["auc"]["high"] is not None and results["auc"]["high"] < 0.5:
            found.append(
                f"inverted target: at {site} the AUC is {results['auc']['value']:.3f}; there, or in the training batches, 1 "
                "means no disease: check the dialect that it was delivered in"
            )
    return found


def decide(
    challenger: Scores,
    baseline: dict[str, float] | None,
    champion: dict[str, float] | None,
    site_aucs: dict[str, tuple[float, float]] | None,
) -> Decision:
    """Judge a challenger.

    challenger: its cross-validated scores; baseline: its comparison with 'always the prevalence' (see scores.compare);
    champion: its comparison with the champion, None where there is no champion or nobody to compare them on;
    site_aucs: ROC-AUC of challenger and champion at each site outside the training batches, None where there is no champion.
    """
    slope = challenger["calibration_slope"]["value"]
    low, high = CALIBRATION_SLOPE
    if baseline is None or baseline["high"] >= 0:
        return Decision("refused", "it does no better than always answering with the prevalence" + _figures(baseline))
    if slope is None or not low <= slope <= high:
        shown = "undefined" if slope is None else f"{slope:.2f}"
        return Decision("refused", f"its calibration slope is {shown}, outside {low} to {high}")
    if site_aucs is None:
        return Decision("promoted", f"there was no champion, and it beats the prevalence{_figures(baseline)}")
    if champion is None:
        return Decision("kept champion", "no one has been judged unseen by both models, so they can't be compared")
    if champion["low"] > 0:
        return Decision("refused", f"it is worse than the champion{_figures(champion)}")
    if champion["high"] >= 0 or champion["p_value"] >= SIGNIFICANCE:
        return Decision("kept champion", f"it is not better beyond chance{_figures(champion)}")
    for site, (ours, theirs) in site_aucs.items():
        if ours < theirs - AUC_LOSS_ALLOWED:
            return Decision("refused", f"at {site} its AUC falls from {theirs:.3f} to {ours:.3f}")
    return Decision("promoted", f"it is better than the champion on the same people{_figures(champion)}")


def _figures(comparison: dict[str, float] | None) -> str:
    if comparison is None:
        return ""
    p_value = "p < 0.001" if comparison["p_value"] < 0.001 else f"p = {comparison['p_value']:.3f}"
    return (
        f" (log-loss difference {comparison['difference']:+.3f}, 95 % interval {comparison['low']:+.3f} to "
        f"{comparison['high']:+.3f}, {p_value}, {comparison['people']} people)"
    )
