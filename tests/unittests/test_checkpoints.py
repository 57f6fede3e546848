"""Laws of the checkpoints: whole or not there, and nothing is forgotten."""

import errno
import json
import os
import time
from datetime import timedelta

import pytest
import torch
import yaml
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch import nn

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.checkpoints import (
    FILES,
    METAFILE,
    Checkpointer,
    RandomState,
    describe_file,
)
from speechbrain_wap.training.statistics import EpochStatistics


@register_checkpoint_hooks
class Fuse:
    """Recoverable that raises while it is saved, once it is set to."""

    error = None

    @mark_as_saver
    def save(self, path):
        """Writes half of its file, and raises the error if there is one."""
        with open(path, "w", encoding="utf-8") as file:
            file.write("ha")
            if self.error is not None:
                raise self.error
            file.write("lf")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Takes a whole file only."""
        with open(path, encoding="utf-8") as file:
            assert file.read() == "half"


class Run:
    """A training with one weight, in a folder that outlives it."""

    def __init__(self, folder, value=0.0):
        self.model = nn.Linear(1, 1, bias=False)
        self.fuse = Fuse()
        self.checkpointer = Checkpointer(
            folder, {"model": self.model, "fuse": self.fuse}
        )
        self.set(value)

    def set(self, value):
        """Sets the weight."""
        nn.init.constant_(self.model.weight, value)

    def resume(self):
        """Gives the weight that a new run in the folder starts from."""
        new = Run(self.checkpointer.checkpoints_dir)
        found = new.checkpointer.recover_if_possible()
        return None if found is None else new.model.weight.item()


@pytest.fixture
def run(tmp_path):
    """A run whose weight was saved as 1 and is 2 now."""
    run = Run(tmp_path / "save", 1.0)
    run.checkpointer.save_checkpoint(meta={"epoch": 1})
    run.set(2.0)
    return run


def test_a_whole_checkpoint_is_found(run):
    assert run.resume() == 1.0
    saved = run.checkpointer.save_checkpoint(meta={"epoch": 2, "UA": 0.5})
    assert run.resume() == 2.0
    assert not list(saved.path.glob("*.partial"))
    with open(saved.path / METAFILE, encoding="utf-8") as file:
        meta = yaml.safe_load(file)
    assert meta == saved.meta
    assert meta["epoch"] == 2 and meta["UA"] == 0.5 and meta["end-of-epoch"]


def test_where_nothing_is_saved_nothing_is_found(tmp_path):
    assert Run(tmp_path).resume() is None


@pytest.mark.parametrize(
    "error, raised",
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (KeyError("bug"), KeyError),
        (OSError(errno.ENOSPC, "No space left on device"), RecipeError),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [None, "named"])
def test_a_checkpoint_interrupted_while_written_is_not_found(
    run, error, raised, name
):
    run.fuse.error = error
    with pytest.raises(raised):
        run.checkpointer.save_checkpoint(name=name)
    # it did get as far as the model
    folders = list(run.checkpointer.checkpoints_dir.iterdir())
    assert all((folder / "model.ckpt").exists() for folder in folders)
    assert len(folders) == 2
    assert run.resume() == 1.0
    # and the run may go on
    run.fuse.error = None
    run.set(3.0)
    run.checkpointer.save_checkpoint(name=name)
    assert run.resume() == 3.0


def test_the_first_checkpoint_interrupted_leaves_none(tmp_path):
    run = Run(tmp_path)
    run.fuse.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run.checkpointer.save_checkpoint()
    assert run.resume() is None


def test_a_folder_with_a_partial_meta_file_is_no_checkpoint(run):
    saved = run.checkpointer.save_checkpoint()
    assert run.resume() == 2.0
    os.replace(saved.path / METAFILE, saved.path / f"{METAFILE}.partial")
    assert run.resume() == 1.0
    run.checkpointer.save_and_keep_only(num_to_keep=1)
    assert run.resume() == 2.0


def test_the_older_checkpoints_go_when_the_new_one_is_whole(run):
    run.fuse.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run.checkpointer.save_and_keep_only(num_to_keep=1)
    assert len(run.checkpointer.list_checkpoints()) == 1
    assert run.resume() == 1.0
    run.fuse.error = None
    run.checkpointer.save_and_keep_only(num_to_keep=1)
    assert len(run.checkpointer.list_checkpoints()) == 1
    assert run.resume() == 2.0


def test_a_folder_that_cannot_be_written_is_a_recipe_error(run):
    folder = run.checkpointer.checkpoints_dir
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("a file in the folder's place")
    with pytest.raises(RecipeError) as error:
        run.checkpointer.save_checkpoint()
    assert str(folder) in str(error.value)


def test_the_systems_reason_is_part_of_the_message(run):
    run.fuse.error = OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(RecipeError, match="Read-only file system"):
        run.checkpointer.save_checkpoint()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_a_recipe_error(run):
    folder = run.checkpointer.checkpoints_dir / "CKPT+full"
    folder.mkdir()
    (folder / "model.ckpt").symlink_to("/dev/full")
    try:
        with pytest.raises(RecipeError):
            run.checkpointer.save_checkpoint(name="full")
    finally:
        assert run.resume() == 1.0


def test_a_checkpoint_restores_the_random_state(tmp_path):
    recoverables = {"random_state": RandomState()}
    torch.manual_seed(1)
    torch.rand(3)
    Checkpointer(tmp_path, recoverables).save_checkpoint()
    expected = torch.rand(100)
    torch.manual_seed(2)
    assert not torch.equal(torch.rand(100), expected)
    Checkpointer(tmp_path, recoverables).recover_if_possible()
    assert torch.equal(torch.rand(100), expected)


def test_saving_does_not_draw_random_numbers(tmp_path):
    state = torch.get_rng_state()
    Checkpointer(tmp_path, {"random_state": RandomState()}).save_checkpoint()
    assert torch.equal(torch.get_rng_state(), state)


# Damage ----------------------------------------------------------------------


def save_epochs(folder, *weights, **options):
    """Saves a checkpoint for each weight; the model's file of each."""
    run = Run(folder)
    saved = []
    for epoch, weight in enumerate(weights, start=1):
        run.set(weight)
        meta = {"epoch": epoch, "UA": 1.0 / epoch}
        checkpoint = run.checkpointer.save_checkpoint(meta=meta, **options)
        saved.append(checkpoint.path / "model.ckpt")
    return run, saved


def truncate(path):
    """Cuts a file in two."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip_a_bit(path):
    """Alters a file without changing its size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def remove(path):
    """Removes a file."""
    path.unlink()


def remove_description(path):
    """Removes what says how the other files were."""
    (path.parent / FILES).unlink()


def empty_meta_file(path):
    """Empties the file that makes the folder a checkpoint."""
    (path.parent / METAFILE).write_text("")


def cut_meta_file(path):
    """Leaves of that file what is no YAML."""
    (path.parent / METAFILE).write_text("{epoch: 2, 'UA")


DAMAGES = [truncate, flip_a_bit, remove, remove_description]
DAMAGES += [empty_meta_file, cut_meta_file]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used_and_said(
    tmp_path, caplog, damage
):
    run, saved = save_epochs(tmp_path, 1.0, 2.0)
    assert run.resume() == 2.0
    damage(saved[1])
    assert run.resume() == 1.0
    assert str(saved[1].parent) in caplog.text
    # what came after is written again
    run.set(3.0)
    run.checkpointer.save_checkpoint()
    assert run.resume() == 3.0


def test_a_folder_of_damaged_checkpoints_is_no_fresh_start(tmp_path):
    run, saved = save_epochs(tmp_path, 1.0, 2.0)
    for path in saved:
        truncate(path)
    with pytest.raises(RecipeError, match="model.ckpt is damaged"):
        run.resume()


def test_no_other_checkpoint_takes_the_place_of_the_best_one(tmp_path):
    run, saved = save_epochs(tmp_path, 1.0, 2.0)
    assert run.checkpointer.find_checkpoint(max_key="UA").meta["epoch"] == 1
    truncate(saved[0])
    with pytest.raises(RecipeError, match="train anew"):
        run.checkpointer.find_checkpoint(max_key="UA")


def test_an_interrupted_epoch_goes_on_with_the_same_batches_only(tmp_path):
    run = Run(tmp_path, 1.0)
    run.checkpointer.batch_size = 8
    run.checkpointer.save_checkpoint()
    run.set(2.0)
    run.checkpointer.save_checkpoint(end_of_epoch=False)
    for batch_size, expected in ((8, 2.0), (16, 1.0)):
        new = Run(tmp_path)
        new.checkpointer.batch_size = batch_size
        new.checkpointer.recover_if_possible()
        assert new.model.weight.item() == expected


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (self.path,)

    def __init__(self, path):
        self.path = str(path)


@pytest.mark.parametrize("name", ["model", "random_state"])
def test_a_checkpoint_cannot_run_code(tmp_path, name):
    recoverables = {"model": nn.Linear(1, 1), "random_state": RandomState()}
    checkpointer = Checkpointer(tmp_path / "save", recoverables)
    saved = checkpointer.save_checkpoint()
    torch.save({"weight": Trap(tmp_path / "trap")}, saved.paramfiles[name])
    files = {p.name: describe_file(p) for p in saved.paramfiles.values()}
    (saved.path / FILES).write_text(json.dumps(files))  # as if saved so
    with pytest.raises(Exception, match="[Ww]eights.only"):
        checkpointer.recover_if_possible()
    assert not (tmp_path / "trap").exists()


# Several processes -----------------------------------------------------------


def check_random_states(rank, folder):
    """Each rank gets its own random state back."""
    torch.manual_seed(rank)
    statistics = EpochStatistics(f"{folder}/history.json")
    statistics.add({"loss": 1.0 + rank}, weight=1 + 2 * rank)
    checkpointer = Checkpointer(
        f"{folder}/states",
        {"random_state": RandomState(), "statistics": statistics},
    )
    checkpointer.save_checkpoint()
    expected = torch.rand(5)
    checkpointer.recover_if_possible()
    assert torch.equal(torch.rand(5), expected)
    # 1 with weight 1 and 2 with weight 3, of which one rank holds the sums
    assert statistics.means() == {"loss": 7 / 4}


def check_a_disk_of_its_own(rank, folder):
    """Rank 1 does not see the folder, and gets its content all the same."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0 + rank)
    checkpointer = Checkpointer(f"{folder}/disk {rank}", {"model": model})
    checkpointer.save_checkpoint()
    assert bool(checkpointer.list_checkpoints()) == (rank == 0)
    nn.init.constant_(model.weight, 0.0)
    assert checkpointer.recover_if_possible() is not None
    assert model.weight.item() == 5.0


def save_twice(rank, folder):
    """Saves two checkpoints as one of two ranks; rank 0 shows them late."""
    torch.distributed.init_process_group(
        "gloo",
        f"file://{folder}/store",
        rank=rank,
        world_size=2,
        # ranks that disagree wait for each other: fail, do not hang
        timeout=timedelta(seconds=20),
    )
    # as torchrun does, which SpeechBrain asks
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    replace = os.replace

    def replace_late(*paths):
        time.sleep(0.5)
        replace(*paths)

    os.replace = replace_late
    model = nn.Linear(1, 1)
    checkpointer = Checkpointer(f"{folder}/save", {"model": model})
    for epoch in (1, 2):
        checkpointer.save_and_keep_only(meta={"epoch": epoch})
    kept = [c.meta["epoch"] for c in checkpointer.list_checkpoints()]
    assert kept == [2]
    check_random_states(rank, folder)
    check_a_disk_of_its_own(rank, folder)
    torch.distributed.destroy_process_group()


def test_ranks_that_list_checkpoints_at_other_moments_do_not_deadlock(tmp_path):
    torch.multiprocessing.spawn(save_twice, (str(tmp_path),), nprocs=2)
