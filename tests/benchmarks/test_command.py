"""`python -m pqm_benchmarks kernels|probe|train|score|work|scaling|search --help`."""

import help_text
import pytest
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.kernels.probe import ProbeBench
from pqm_benchmarks.kernels.run import KernelBench
from pqm_benchmarks.scaling.run import ScalingBench
from pqm_benchmarks.score.run import ScoreBench
from pqm_benchmarks.search.run import SearchBench
from pqm_benchmarks.train.run import TrainBench
from pqm_benchmarks.work.run import WorkBench

CONFIGS = {
    "kernels": KernelBench,
    "probe": ProbeBench,
    "train": TrainBench,
    "score": ScoreBench,
    "work": WorkBench,
    "scaling": ScalingBench,
    "search": SearchBench,
}


@pytest.mark.parametrize("command", CONFIGS)
def test_help_lists_every_option_with_its_docstring(command, capsys):
    assert main([command, "--help"]) == 0
    help_text.assert_lists_every_option(
        capsys.readouterr().out, f"python -m pqm_benchmarks {command}", CONFIGS[command]
    )


@pytest.mark.parametrize("command", CONFIGS)
def test_help_is_for_users(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert not help_text.DEVELOPERS.search(text), help_text.DEVELOPERS.search(text)


def test_a_usage_error_has_exit_code_2(capsys):
    assert main(["work", "--nope"]) == 2


def test_options_come_from_a_file_too(tmp_path, capsys):
    file = tmp_path / "options.yaml"
    file.write_text("questions: 0\n")
    assert main(["work", "--config", str(file)]) == 1
    assert "pqm_benchmarks: error: workload: questions must be positive" in capsys.readouterr().err
