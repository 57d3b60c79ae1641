"""The files of a probe in its run folder, beside those of a checkpoint. heads.jsonl is written last."""

HEADS_FILE, WEIGHTS_FILE, SUMMARY_FILE, PICTURE = "heads.jsonl", "heads.npz", "probe.json", "layers.png"
