"""kd_softmax_loss as such losses are usually written in Triton: a program per row, loss and gradient in one pass.

Float32, the background in column 0. Needs a GPU, or TRITON_INTERPRET=1.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def log_softmax(values):
    values -= tl.max(values, 0)
    return values - tl.log(tl.sum(tl.exp(values), 0))


@triton.jit
def loss_and_gradient(student, teacher, matched, losses, gradient, temperature, scale, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    known = inside & (column > 0)  # to the teacher, whose rows have no background
    student_row = tl.load(student + row * columns + column, mask=inside, other=float("-inf"))
    of_teacher = tl.load(matched + row) * (columns - 1) - 1
    teacher_row = tl.load(teacher + of_teacher + column, mask=known, other=float("-inf"))
    log_student = log_softmax(student_row / temperature)
    log_teacher = log_softmax(teacher_row / temperature)
    probability = tl.exp(log_teacher)
    divergence = tl.sum(tl.where(known, probability * (log_teacher - log_student), 0.0), 0)
    tl.store(losses + row, scale * temperature * divergence)
    tl.store(gradient + row * columns + column, scale * (tl.exp(log_student) - probability), mask=inside)


class KDLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, matched, temperature):
        rows, columns = student.shape
        losses, gradient = student.new_empty(rows), torch.empty_like(student)
        block = triton.next_power_of_2(columns)
        loss_and_gradient[(rows,)](
            student, teacher, matched, losses, gradient, temperature, temperature / rows, columns, BLOCK=block
        )
        ctx.save_for_backward(gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream, None, None, None


def kd_loss(student_logits, teacher_logits, matched_idxs, temperature):
    """T^2 KL(teacher, student), mean over rows."""
    return KDLoss.apply(student_logits, teacher_logits, matched_idxs, temperature)
