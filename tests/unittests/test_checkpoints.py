"""Laws of the checkpoints: whole or not there, and nothing is forgotten."""

import errno
import json
import os
import time
import zlib
from datetime import timedelta

import pytest
import torch
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
)


@register_checkpoint_hooks
class Fuse:
    """Recoverable that raises while it is saved, once it is set to."""

    error = None

    @mark_as_saver
    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            file.write("ha")
            if self.error is not None:
                raise self.error
            file.write("lf")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        with open(path, encoding="utf-8") as file:
            assert file.read() == "half"


class Run:
    """A training with one weight, in a folder that outlives it."""

    def __init__(self, folder, batch_size=None):
        self.model = nn.Linear(1, 1, bias=False)
        self.fuse = Fuse()
        recoverables = {"model": self.model, "fuse": self.fuse}
        self.checkpointer = Checkpointer(folder, recoverables)
        self.checkpointer.batch_size = batch_size

    def save(self, weight, epoch=0, **options):
        nn.init.constant_(self.model.weight, weight)
        meta = {"epoch": epoch, "UA": 1.0 - epoch}
        saved = self.checkpointer.save_checkpoint(meta=meta, **options)
        return saved.path / "model.ckpt"

    def resume(self, batch_size=None):
        new = Run(self.checkpointer.checkpoints_dir, batch_size)
        found = new.checkpointer.recover_if_possible()
        return None if found is None else new.model.weight.item()


@pytest.fixture
def run(tmp_path):
    """A run without a checkpoint."""
    return Run(tmp_path / "save")


@pytest.mark.parametrize("name", [None, "named"])
@pytest.mark.parametrize(
    "error, raised",
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left"), RecipeError),
    ],
)
def test_a_checkpoint_interrupted_while_written_is_not_found(
    run, error, raised, name
):
    for weight in (None, 1.0):
        if weight is not None:
            run.save(weight)
        run.fuse.error = error
        with pytest.raises(raised):
            run.save(2.0, name=name)
        # it did get as far as the model
        folders = list(run.checkpointer.checkpoints_dir.iterdir())
        assert all((folder / "model.ckpt").exists() for folder in folders)
        assert run.resume() == weight
        # older checkpoints go when the new one is whole only
        with pytest.raises(raised):
            run.checkpointer.save_and_keep_only(num_to_keep=1)
        assert run.resume() == weight
        run.fuse.error = None
    # the run may go on, and what was left is cleared away
    run.save(3.0, name=name)
    assert run.resume() == 3.0
    assert len(list(run.checkpointer.checkpoints_dir.iterdir())) == 2
    for _ in range(2):
        run.checkpointer.save_and_keep_only(num_to_keep=1)
        assert len(run.checkpointer.list_checkpoints()) == 1
        assert run.resume() == 3.0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_a_recipe_error(run):
    run.save(1.0)
    folder = run.checkpointer.checkpoints_dir / "CKPT+full"
    folder.mkdir()
    (folder / "model.ckpt").symlink_to("/dev/full")
    with pytest.raises(RecipeError):
        run.save(2.0, name="full")
    assert run.resume() == 1.0


def test_an_interrupted_epoch_goes_on_with_the_same_batches_only(tmp_path):
    run = Run(tmp_path, batch_size=8)
    run.save(1.0)
    run.save(2.0, end_of_epoch=False)
    assert run.resume(batch_size=8) == 2.0
    assert run.resume(batch_size=16) == 1.0


# Damage ----------------------------------------------------------------------


def flip_a_bit(path):
    """Alters a file without changing its size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "truncated": lambda path: os.truncate(path, 10),
    "one bit": flip_a_bit,
    "removed": os.remove,
    "not described": lambda path: os.remove(path.parent / FILES),
    "half a meta file": lambda path: (path.parent / METAFILE).write_text("{a"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used_and_said(
    run, caplog, damage
):
    run.save(1.0)
    path = run.save(2.0)
    assert run.resume() == 2.0
    DAMAGES[damage](path)
    assert run.resume() == 1.0
    assert str(path.parent) in caplog.text
    # what came after is written again
    run.save(3.0)
    assert run.resume() == 3.0


def test_damage_to_all_or_to_the_best_is_no_fresh_start(run):
    best, last = run.save(1.0, epoch=1), run.save(2.0, epoch=2)
    assert run.checkpointer.find_checkpoint(max_key="UA").meta["epoch"] == 1
    flip_a_bit(best)
    # no other one takes the best one's place
    with pytest.raises(RecipeError, match="train anew"):
        run.checkpointer.find_checkpoint(max_key="UA")
    assert run.resume() == 2.0
    flip_a_bit(last)
    with pytest.raises(RecipeError, match="model.ckpt is damaged"):
        run.resume()


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (self.path,)

    def __init__(self, path):
        self.path = str(path)


@pytest.mark.parametrize("name", ["model", "optimizer", "random_state"])
def test_a_checkpoint_cannot_run_code(tmp_path, name):
    model = nn.Linear(1, 1)
    recoverables = {"model": model, "random_state": RandomState()}
    recoverables["optimizer"] = torch.optim.Adam(model.parameters())
    checkpointer = Checkpointer(tmp_path / "save", recoverables)
    saved = checkpointer.save_checkpoint()
    torch.save({"weight": Trap(tmp_path / "trap")}, saved.paramfiles[name])
    content = saved.paramfiles[name].read_bytes()
    described = json.loads((saved.path / FILES).read_text())
    described[f"{name}.ckpt"] = [len(content), zlib.crc32(content)]
    (saved.path / FILES).write_text(json.dumps(described))  # as if saved so
    with pytest.raises(Exception, match="[Ww]eights.only"):
        checkpointer.recover_if_possible()
    assert not (tmp_path / "trap").exists()


# Several processes -----------------------------------------------------------


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
    torch.distributed.destroy_process_group()


def test_ranks_that_list_checkpoints_at_other_moments_do_not_deadlock(tmp_path):
    torch.multiprocessing.start_processes(
        save_twice, (str(tmp_path),), nprocs=2, start_method="fork"
    )
