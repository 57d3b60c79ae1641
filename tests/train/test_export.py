"""What `pqm-fast export` refuses. What it writes is tested with the checkpoints of several ranks."""

from pqm_fast.cli import main
from pqm_fast.train.loop import train


def test_what_cannot_be_exported(configure, tmp_path, capsys):
    config = configure(save_every=2, max_steps=4, eval_fraction=0)
    run, out = config.folder, tmp_path / "hf"
    train(config)
    for arguments, message in (
        ([run, "--out", out, "--step", "7"], "no checkpoint of step 7; there are those of 2, 4"),
        ([run, "--out", out, "--step", "best"], "no checkpoint was evaluated, so none is the best; give --step N"),
        (["elsewhere", "--out", out], "no checkpoint in elsewhere/checkpoints; name a run folder that has one"),
        ([run, "--out", run], "is not empty; choose another --out"),
    ):
        assert main(["export", *map(str, arguments)]) == 1
        assert message in capsys.readouterr().err
        assert not out.exists()
