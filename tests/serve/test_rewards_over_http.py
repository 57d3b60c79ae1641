"""The adapters with the URL of a server give what they give with the model itself."""

import pytest

from pqm_fast.rewards.adapters import ItsHubPRM, SearchAndLearnPRM, openrlhf_reward, trl_reward, verl_reward

QUESTION, TEXT = "w3 w4", "w5 w6\n\nw7 w8 w9"
ASK = {
    "trl": lambda model: trl_reward(model)(prompts=[QUESTION], completions=[TEXT]),
    "verl": lambda model: [verl_reward(model)("d", TEXT, None, {"question": QUESTION})["score"]],
    "openrlhf": lambda model: openrlhf_reward(model)([QUESTION + TEXT], [QUESTION])["rewards"].tolist(),
    "its-hub": lambda model: ItsHubPRM(model).score(QUESTION, [TEXT]),
    "search-and-learn": lambda model: SearchAndLearnPRM(model).score([QUESTION], [[TEXT]])[0][0],
}


@pytest.mark.parametrize("library", ASK)
def test_a_server(library, server, scorer):
    got, expected = (ASK[library](model) for model in (server.url, scorer))
    assert got == pytest.approx(expected, abs=1e-5)
    assert any(got)
