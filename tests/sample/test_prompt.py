"""From steps to the prompt of a policy."""

from pqm_fast.sample.prompt import write_prompt


def test_write_prompt():
    assert write_prompt("Q: {prompt}\nA:\n", "Is {prompt} {step}?", [], "\n") == "Q: Is {prompt} {step}?\nA:\n"
    assert write_prompt("{prompt}\n", "q", ["a", "b"], "\n\n") == "q\na\n\nb\n\n"
