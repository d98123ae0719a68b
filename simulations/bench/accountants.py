"""Accountants: what each says of the same training, and how much noise it asks for; the tables of docs/privacy.md.

in        mechanisms that others have published numbers for, and a grid of sampling rates and steps
out       rows of both tables on standard output: python -m simulations.bench.accountants
relies on shared/privacy/accountant.py
"""

from shared.privacy.accountant import MechanismUse, calibrate_noise, spent_epsilon

DELTA, EPSILON = 1e-5, 8.0
PUBLISHED = (MechanismUse(4.0, 0.01, 10_000), MechanismUse(1.12, 256 / 60_000, 14_062), MechanismUse(0.7, 0.01, 120))
PLANS = ((0.05, 20), (0.05, 2000), (0.25, 200), (0.5, 200), (1.0, 20), (1.0, 2000))


def main() -> None:
    """Prints the rows."""
    print(f"epsilon at delta {DELTA:g}: noise, rate, steps | rdp | pld")
    for use in PUBLISHED:
        found = [spent_epsilon([use], delta=DELTA, accountant=accountant) for accountant in ("rdp", "pld")]
        print(
            f"| {use.noise_multiplier:g}, {use.sample_rate:.4g}, {use.steps:,} |", *(f"{each:.3f} |" for each in found)
        )
    print(f"noise multiplier at epsilon {EPSILON:g}, delta {DELTA:g}: rate | steps | rdp | prv | pld")
    for rate, steps in PLANS:
        noise = [
            calibrate_noise(epsilon=EPSILON, delta=DELTA, sample_rate=rate, steps=steps, accountant=accountant)
            for accountant in ("rdp", "prv", "pld")
        ]
        print(f"| {rate:g} | {steps} |", *(f"{each:.4g} |" for each in noise))


if __name__ == "__main__":
    main()
