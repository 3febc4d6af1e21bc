import math
import os
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from openfl_audio.envoy.progress_sender import ProgressSender, gpu_memory_bytes, numbers
from openfl_audio.node.progress import CountedData, begin_task, counted, current, report
from openfl_audio.protocol.messages import MAX_LOG_CHARACTERS, MAX_VALUES


@pytest.fixture(autouse=True)
def task() -> Any:
    begin_task("train", 3)
    yield
    begin_task("", 3)


def test_a_loader_reports_the_steps_that_are_taken_from_it():
    loader = counted(DataLoader(TensorDataset(torch.arange(10)), batch_size=3))
    seen = [(current().step, current().total, current().clips, batch[0].tolist()) for batch in loader]
    assert seen == [(0, 4, 0, [0, 1, 2]), (1, 4, 3, [3, 4, 5]), (2, 4, 6, [6, 7, 8]), (3, 4, 9, [9])]
    assert current()[:2] + current()[3:5] == ("train", 3, 4, 4)


def test_each_pass_over_the_data_is_timed_by_itself():
    loader = counted(DataLoader(TensorDataset(torch.arange(2))))
    began = []
    for _ in range(2):
        for _ in loader:
            began.append(current().began)
        began.append(current().began)
    first, second = began[0], began[3]
    assert began == [first] * 3 + [second] * 3
    assert second > first
    report(1)  # of a loop that counts from one
    assert current().began > second


def test_a_counted_loader_is_the_same_object_and_draws_the_same_batches():
    class Special(DataLoader):
        pass

    def batches(loader: DataLoader) -> list[list[int]]:
        torch.manual_seed(0)
        return [batch[0].tolist() for batch in loader]

    loader = Special(TensorDataset(torch.arange(10)), batch_size=3, shuffle=True)
    plain = batches(loader)
    again = counted(counted(loader))
    assert again is loader
    assert isinstance(again, Special)
    assert type(again).__name__ == "Special"
    assert batches(again) == plain
    assert batches(again) == plain


def test_of_a_loader_without_a_length_the_steps_are_counted():
    class Endless(IterableDataset):
        def __iter__(self) -> Any:
            return iter(range(4))

    loader = iter(counted(DataLoader(Endless(), batch_size=2)))
    next(loader), next(loader)
    assert current()[3:6] == (1, None, 2)


def test_both_loaders_of_a_data_interface_count_and_others_are_as_they_were():
    class Data:
        train, valid = DataLoader(TensorDataset(torch.arange(2))), [1, 2, 3]

        def get_train_loader(self) -> Any:
            return self.train

        def get_valid_loader(self) -> Any:
            return self.valid

    data = CountedData(Data())
    for _ in data.get_train_loader():
        assert current().total == 2
    assert data.get_valid_loader() is Data.valid


def test_a_report_holds_no_graph_and_what_is_no_number_is_not_sent():
    report(
        2, 5, loss=torch.tensor(0.25, requires_grad=True) * 2, lr=1e-3, note="warm", bad=math.nan, many=torch.ones(3)
    )
    assert not current().values["loss"].requires_grad
    assert numbers(current().values) == {"loss": 0.5, "lr": 1e-3}
    assert len(numbers({str(number): number for number in range(99)})) == MAX_VALUES


def test_the_next_task_begins_without_steps():
    report(5, 7)
    begin_task("validate", 4)
    assert (current().task, current().round_number, current().step, current().total) == ("validate", 4, 0, None)


def test_of_what_was_printed_the_new_part_leaves_where_the_site_says_so(tmp_path):
    log = tmp_path / "worker.log"
    log.write_text("before\n")
    with log.open("a+") as file:
        output = file.fileno()
        sender, silent = (ProgressSender(lambda _: 1.0, "a", "toy", reports, output) for reports in ("logs", "losses"))
        print("one", file=file, flush=True)
        assert (sender._new_log(), sender._new_log(), silent._new_log()) == ("one\n", "", "")
        print("x" * 20_000 + "last", end="", file=file, flush=True)
        text = sender._new_log()
    assert len(text) <= MAX_LOG_CHARACTERS
    assert text.startswith("[12104 bytes are left out]\nxxx")
    assert text.endswith("xlast")


def test_the_memory_on_all_gpus_is_reported_and_a_task_that_uses_none_starts_no_gpu(tmp_path, monkeypatch):
    reports, log = [], os.open(tmp_path, os.O_RDONLY)
    sender = ProgressSender(lambda report: reports.append(report) or 1.0, "a", "toy", "steps", log)
    os.close(log)
    reserved = {0: 3_000_000_000, 1: 500_000_000}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    # Asking a GPU makes a context there, which takes memory, and this task leaves it alone.
    for name in ("memory_reserved", "device_count"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    assert gpu_memory_bytes() == 0
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(reserved))
    monkeypatch.setattr(torch.cuda, "memory_reserved", reserved.__getitem__)
    sender._send(current(), "")
    assert reports[0].gpu_memory_bytes == 3_500_000_000
    assert reports[0].memory_bytes > 0
