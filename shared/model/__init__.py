"""Model: an encoder a modality, a fusion and a head, all with exact per-sample gradients."""
