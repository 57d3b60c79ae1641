import fault_matrix


def test_the_page_says_what_the_tests_inject():
    page = fault_matrix.PAGE.read_text(encoding="utf-8")
    assert page == fault_matrix.with_table(page), "run: python tests/fault_matrix.py"
    assert page.count("::test_") >= 1
