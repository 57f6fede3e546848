"""Laws of the teacher branch (Eq. 2)."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_near, generator, randomise_
from torch import nn

from speechbrain_wap.errors import RecipeError
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


class Wrapper(nn.Module):
    """Holds a module under a name, as torch's wrappers do."""

    def __init__(self, name, wrapped):
        super().__init__()
        self.add_module(name, wrapped)


@pytest.mark.parametrize("ema_decay", [0.0, 0.3, 0.9, 0.999, 1.0])
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


@pytest.mark.parametrize("ema_decay", [0.0, 1.0])
def test_the_ends_of_the_decay_are_exact(ema_decay):
    student = make_student()
    teacher = EMATeacher(student, ema_decay)
    start = copy.deepcopy(student)
    train_step_(student, 1)
    teacher.update(student)
    expected = student if ema_decay == 0.0 else start
    for mine, theirs in zip(teacher.model.parameters(), expected.parameters()):
        assert torch.equal(mine, theirs)


def test_buffers_follow_the_student():
    student = make_student()
    teacher = EMATeacher(student, 0.9)
    for step in (1, 2):
        train_step_(student, step)
        teacher.update(student)
    mine = dict(teacher.model.named_buffers())
    assert int(mine["1.num_batches_tracked"]) == 2
    for name, theirs in student.named_buffers():
        assert torch.equal(mine[name], theirs), name


def test_update_leaves_the_student_alone():
    student = make_student()
    teacher = EMATeacher(student, 0.5)
    train_step_(student, 1)
    before = copy.deepcopy(student.state_dict())
    teacher.update(student)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert student.training
    assert all(p.requires_grad for p in student.parameters())


def test_the_teacher_starts_equal_to_the_student_but_shares_no_memory():
    student = make_student()
    teacher = EMATeacher(student)
    before = copy.deepcopy(student.state_dict())
    mine = teacher.model.state_dict()
    assert list(mine) == list(before)
    for value in student.state_dict().values():
        value.add_(1)
    for name, value in mine.items():
        assert torch.equal(value, before[name]), name


def test_the_teacher_stays_in_eval_mode_whatever_is_called():
    student = make_student().train()
    branches = nn.ModuleDict(
        {"student": student, "teacher": EMATeacher(student)}
    )
    for call in (branches.train, branches["teacher"].train, branches.eval):
        call()
        assert not any(m.training for m in branches["teacher"].modules())
    branches.train()
    assert all(m.training for m in branches["student"].modules())


def test_dropout_is_never_active():
    student = make_student(dropout=0.5)
    branches = nn.ModuleList([student, EMATeacher(student)]).train()
    x = torch.randn(5, 3, generator=generator())
    first, second = branches[1](x), branches[1](x)
    assert torch.equal(first, second)
    assert torch.equal(first, copy.deepcopy(student).eval()(x))
    assert not torch.equal(student(x), student(x))


def test_running_the_teacher_does_not_change_it():
    teacher = EMATeacher(make_student()).train()
    before = copy.deepcopy(teacher.state_dict())
    teacher(torch.randn(5, 3, generator=generator()))
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


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


@pytest.mark.parametrize(
    "wrap",
    [
        lambda student: Wrapper("module", student),
        lambda student: Wrapper("_orig_mod", student),
        lambda student: Wrapper("module", Wrapper("_orig_mod", student)),
    ],
    ids=["distributed", "compiled", "distributed and compiled"],
)
def test_a_wrapped_student_is_the_student(wrap):
    student = make_student()
    bare, wrapped = EMATeacher(student, 0.5), EMATeacher(student, 0.5)
    start = copy.deepcopy(student.state_dict())
    train_step_(student, 1)
    bare.update(student)
    wrapped.update(wrap(student))
    state = wrapped.state_dict()
    for name, value in bare.state_dict().items():
        assert torch.equal(state[name], value), name
        assert not torch.equal(value, start[name.removeprefix("model.")])


def test_a_saved_teacher_goes_on_as_the_same():
    student = make_student()
    teacher = EMATeacher(student, 0.9)
    train_step_(student, 1)
    teacher.update(student)
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)
    resumed = EMATeacher(randomise_(make_student(), 9), 0.9)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train_step_(student, 2)
    for branch in (teacher, resumed):
        branch.update(student)
    mine = resumed.state_dict()
    assert len(mine) == len(teacher.state_dict()) > 0
    for name, value in teacher.state_dict().items():
        assert torch.equal(mine[name], value), name


def test_arguments_go_to_the_student_as_they_are():
    class Student(nn.Module):
        def forward(self, feats, lens, mask=None):
            return feats, lens, mask

    assert EMATeacher(Student())(1, 2, mask=3) == (1, 2, 3)


@pytest.mark.parametrize(
    "decays, message",
    [
        ([-0.1], "ema_decay=-0.1 must be within 0 and 1"),
        ([1.001], "ema_decay=1.001 must be within 0 and 1"),
        ([0.9, -1], "ema_decay_start=-1 must be within 0 and 1"),
        ([0.9, 0.99], r"ema_decay_start \(0.99\) must not be above ema_decay"),
    ],
)
def test_a_decay_that_is_none_raises(decays, message):
    with pytest.raises(RecipeError, match=message):
        EMATeacher(make_student(), *decays)


@pytest.mark.parametrize(
    "progress, decay", [(0.0, 0.5), (0.5, 0.7), (1.0, 0.9), (None, 0.9)]
)
def test_the_decay_rises_linearly_from_its_start(progress, decay):
    student = make_student()
    teacher = EMATeacher(student, 0.9, ema_decay_start=0.5)
    before = teacher.model[0].weight.clone()
    train_step_(student, 2)
    teacher.update(student, *([] if progress is None else [progress]))
    expected = decay * before + (1 - decay) * student[0].weight
    assert_near(teacher.model[0].weight, expected)
    if progress is not None:
        assert teacher.ema_schedule(progress) == pytest.approx(decay)
        # where nothing else is said, it stays
        assert EMATeacher(student, 0.9).ema_schedule(progress) == 0.9


def test_the_teacher_moves_once_per_optimiser_step(import_script):
    script = import_script("recipes/IEMOCAP/wap_adapter/train_adapter.py")
    brain = object.__new__(script.AdapterBrain)
    student = make_student()
    teacher = EMATeacher(student, 0.9, ema_decay_start=0.5)
    before = teacher.model[0].weight.clone()
    train_step_(student, 2)
    brain.modules = SimpleNamespace(student=student, teacher=teacher)
    brain.progress = lambda: 0.5
    brain.has_stepped = False  # as between accumulated batches
    brain.on_fit_batch_end(None, None, None, False)
    assert torch.equal(teacher.model[0].weight, before)
    brain.has_stepped = True
    brain.on_fit_batch_end(None, None, None, True)
    expected = 0.7 * before + 0.3 * student[0].weight
    assert_near(teacher.model[0].weight, expected)
