"""The faults that ``python -m tests.bite`` plants: each can be, and the committed table has all."""

from tests import bite

FAULTS = bite.faults()


def test_there_are_enough_faults_and_each_can_be_planted():
    assert len(FAULTS) >= 40
    for fault in FAULTS:
        text = fault.planted((bite.ROOT / fault.file).read_text(encoding="utf-8"))
        compile(text, fault.file, "exec")
        assert all((bite.ROOT / "tests" / f"{name}.py").exists() for name in fault.tests)


def test_the_table_says_what_caught_each():
    *table, counted = (bite.ROOT / "tests" / "bite.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in table if line.startswith("| ")][1:]
    assert {(row[0].removeprefix("| "), row[1]) for row in rows} == {
        (fault.module, fault.what) for fault in FAULTS
    }
    assert counted == f"{len(FAULTS)} of {len(FAULTS)} caught"
