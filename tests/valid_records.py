"""One valid raw record of every format, written by hand."""

TRL = {"prompt": "1+1?", "completions": ["a", "b"], "labels": [True, 0.25]}
SHEPHERD = {
    "input": "How many? Step 1: two ки\nStep 2: three\nmore ки\n",
    "label": "How many? Step 1: two +\nStep 2: three\nmore -",
    "task": "GSM8K",
}
OPENRLHF = {"input": SHEPHERD["input"], "value": ["+", "-"]}
OPENR = {"question": "How many?", "process": "one ки\n\ntwo. ки", "labels": [1, "-"]}
PROCESSBENCH = {"id": "g-1", "problem": "Why?", "steps": ["a", "b", "c", "d"], "label": 1, "generator": "m"}
POOL = {
    "question": "6x7?",
    "answer": "42",
    "responses": [
        {"text": " six \r\n\n  \nA: 42\n", "model_name": "p", "correct": True},
        {"steps": ["x\ny", "z"], "answer": "41"},
    ],
}
MATH_APS = {
    "question": "Sum 1 to 4.",
    "final_answer": "10",
    "question_id": "q9",
    "reasoning_steps": [
        {"solution_prefix": "Sum 1 to 4.", "mc_value": 0.5},
        {"solution_prefix": "Sum 1 to 4.\n\n\n1+4 is 5.", "mc_value": 0.875},
        {"solution_prefix": "Sum 1 to 4.\n\n\n1+4 is 5.\n\nTwice 5 is 10.", "mc_value": 1.0},
        {"solution_prefix": "Sum 1 to 4.\n\n\n1+4 is 5.\n\nSo 5\n\nis it.", "mc_value": 0},
        {"solution_prefix": "Sum 1 to 4.\n\n\n1+4 is 55", "mc_value": 0.25},
    ],
}
RLHFLOW = {
    "conversations": [
        {"role": "user", "content": "Read step 1: of it. How many? Step 1: two"},
        {"role": "assistant", "content": "+"},
        {"role": "user", "content": "Step 2: three\n"},
        {"role": "assistant", "content": "-"},
    ]
}
SEARCH_AND_LEARN = {
    "problem": "6x7?",
    "answer": "42",
    "unique_id": "t/1.json",
    "completions": ["six\nsevens\n\nA: 42\n\n", "A: 41"],
    "scores": [[0.5, 0.75, 0.25], [0.125]],
    "agg_scores": [0.25, 0.125],
    "pred": "42",
}
PRMBENCH = {
    "original_question": "Old?",
    "modified_question": "Why?",
    "original_process": ["a"],
    "modified_process": ["a", "b", "c"],
    "modified_steps": [2],
    "error_steps": [2, 3],
    "reason": "so",
    "idx": "circular_7",
    "classification": "circular",
}
REASONEVAL = {
    "uuid": "u1",
    "question": "Why?",
    "ground_truth_answer": "7",
    "model_output_steps": ["a", "b", "c"],
    "model_output_solution_correctness": "wrong",
    "model_output_solution_first_error_step": 2,
}
VERSAPRM = {
    "id": "v3",
    "question": "Why?",
    "answer": "B",
    "chain_of_thoughts": "['a', \"b's\"]",
    "labels": "[1, -1]",
    "cot_id": 4,
    "parsed_answer_correctness": False,
}


def completion(text, rating):
    return {"text": text, "rating": rating, "flagged": False}


PRM800K = {
    "labeler": "L",
    "question": {"problem": "P?", "ground_truth_answer": "7"},
    "label": {
        "steps": [
            {
                "completions": [completion("a0", -1), completion("a1", 1), completion("a2", None)],
                "human_completion": None,
                "chosen_completion": 1,
            },
            {
                "completions": [completion("b0", -1)],
                "human_completion": {"text": "bh", "rating": None, "source": "human"},
                "chosen_completion": None,
            },
            {"completions": [completion("c0", 0)], "human_completion": None, "chosen_completion": 0},
        ],
        "finish_reason": "solution",
    },
}

VALID = {
    "trl": TRL,
    "math-shepherd": SHEPHERD,
    "openrlhf": OPENRLHF,
    "openr": OPENR,
    "processbench": PROCESSBENCH,
    "pool": POOL,
    "prm800k": PRM800K,
    "math-aps": MATH_APS,
    "rlhflow": RLHFLOW,
    "search-and-learn": SEARCH_AND_LEARN,
    "prmbench": PRMBENCH,
    "reasoneval": REASONEVAL,
    "versaprm": VERSAPRM,
}
