"""Laws of the teacher branch (Eq. 2)."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_near, generator, randomise_
from recipe_runs import assert_equal_states
from torch import nn

from speechbrain_wap.teacher import EMATeacher


def make_student(dropout=0.5):
    """Makes a student with all a module can have: buffers and dropout."""
    return randomise_(
        nn.Sequential(
            nn.Linear(3, 4),
            nn.BatchNorm1d(4),
            nn.Dropout(dropout),
            nn.Linear(4, 2),
        )
    )


def train_step_(student, seed):
    """Moves the student's parameters and running statistics somewhere."""
    randomise_(student, seed)
    student.train()(torch.randn(6, 3, generator=generator(seed)))


@pytest.mark.parametrize("ema_decay", [0.0, 0.3, 0.999, 1.0])
def test_update_is_equation_2(ema_decay):
    student = make_student()
    teacher = EMATeacher(student, ema_decay)
    expected = [p.detach().double() for p in student.parameters()]
    for step in range(1, 6):
        train_step_(student, step)
        teacher.update(student)
        for i, theirs in enumerate(student.parameters()):
            expected[i] = (
                ema_decay * expected[i]
                + (1.0 - ema_decay) * theirs.detach().double()
            )
        mine = list(teacher.model.parameters())
        assert len(mine) == len(expected)
        for parameter, value in zip(mine, expected):
            assert_near(parameter, value, atol=1e-6)


def test_a_teacher_starts_as_a_copy_and_its_buffers_follow_the_student():
    student = make_student()
    teacher = EMATeacher(student, 0.9)
    before = copy.deepcopy(student.state_dict())
    train_step_(student, 1)
    assert_equal_states(dict(teacher.model.state_dict()), dict(before))
    before = copy.deepcopy(student.state_dict())
    teacher.update(student)
    # who is left alone
    assert_equal_states(dict(student.state_dict()), dict(before))
    assert student.training
    assert all(p.requires_grad for p in student.parameters())
    buffers = dict(teacher.model.named_buffers())
    assert int(buffers["1.num_batches_tracked"]) == 1
    assert_equal_states(buffers, dict(student.named_buffers()))


def test_the_teacher_stays_the_student_in_eval_mode():
    student = make_student(dropout=0.5)
    branches = nn.ModuleList([student, EMATeacher(student)])
    x = torch.randn(5, 3, generator=generator())
    expected = copy.deepcopy(student).eval()(x)
    for call in (branches.train, branches[1].train, branches.eval):
        call()
        assert not any(m.training for m in branches[1].modules())
        assert torch.equal(branches[1](x), expected)  # running changes nothing
    assert all(m.training for m in branches.train()[0].modules())
    assert not torch.equal(student(x), student(x))


def test_no_gradient_flows_into_or_through_the_teacher():
    student = make_student()
    teacher = EMATeacher(student)
    x = torch.randn(5, 3, generator=generator(), requires_grad=True)
    assert not teacher(x).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    (student(x) - teacher(x)).square().sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    teacher.update(student)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_wrapped_student_is_the_student():
    student = make_student()
    bare, wrapped = EMATeacher(student, 0.5), EMATeacher(student, 0.5)
    train_step_(student, 1)
    bare.update(student)
    # as for several ranks and by torch.compile
    wrapped.update(
        nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": student})})
    )
    assert_equal_states(wrapped.state_dict(), bare.state_dict())


@pytest.mark.parametrize("progress, decay", [(0.0, 0.5), (0.5, 0.7), (1, 0.9)])
def test_the_decay_rises_and_the_teacher_moves_once_per_optimiser_step(
    import_script, progress, decay
):
    script = import_script("recipes/IEMOCAP/wap_adapter/train_adapter.py")
    brain = object.__new__(script.AdapterBrain)
    student = make_student()
    teacher = EMATeacher(student, 0.9, ema_decay_start=0.5)
    before = teacher.model[0].weight.clone()
    train_step_(student, 2)
    brain.modules = SimpleNamespace(student=student, teacher=teacher)
    brain.progress = lambda: progress
    brain.has_stepped = False  # as between accumulated batches
    brain.on_fit_batch_end(None, None, None, False)
    assert torch.equal(teacher.model[0].weight, before)
    brain.has_stepped = True
    brain.on_fit_batch_end(None, None, None, True)
    expected = decay * before + (1 - decay) * student[0].weight
    assert_near(teacher.model[0].weight, expected)
    assert teacher.ema_schedule(progress) == pytest.approx(decay)
    # where nothing else is said, it stays
    assert EMATeacher(student, 0.9).ema_schedule(progress) == 0.9
