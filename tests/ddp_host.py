"""One process of test_host_trainers.py: python ddp_host.py HOST RANK PORT OUTPUT_FOLDER, of two."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
sys.path.append(str(EXAMPLES))

from pictures import CLASSES, CROP, MEAN, STD, make_pictures, train_classifier  # noqa: E402

from cls2det.distill import BoxDistiller, ClassifierSettings, PositiveTap, teacher_from  # noqa: E402
from cls2det.models.students import build_student  # noqa: E402

WORLD = 2


def gradients_of_terms(rank: int | None) -> dict[str, Tensor]:
    """Of all terms, by one of two processes that each see two pictures, or by one that sees all four."""
    torch.manual_seed(0)
    detector = build_student("ssd_compact", len(CLASSES), 96).train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # else a process normalises by its own pictures
    tap = PositiveTap(detector)
    teacher = teacher_from(train_classifier(), CLASSES, CROP, mean=MEAN, std=STD)
    distiller = BoxDistiller(
        teacher, ClassifierSettings(kd_loc_weight=2.0, loc_weight=2.0, normalizer="all"), **tap.normalisation
    )
    pictures = make_pictures(4)
    mine = pictures if rank is None else pictures[rank * 2 : rank * 2 + 2]
    model = detector if rank is None else DistributedDataParallel(detector)
    with tap:
        losses = model([picture for picture, _, _ in mine], [{"boxes": boxes, "labels": labels} for _, boxes, labels in mine])
    (sum(distiller(tap.positives).values()) + 0 * sum(losses.values())).backward()
    return {name: parameter.grad for name, parameter in detector.named_parameters()}


def torchvision_host(rank: int) -> dict[str, object]:
    """Gradients as those of one process, and then the example's own epoch, with a detector that DDP wraps."""
    dist.init_process_group("gloo")
    gradients = gradients_of_terms(rank)
    import torchvision_detection

    plain = torchvision_detection.train_one_epoch
    models = []

    def wrapped(model, *arguments):
        models.append(model)
        return plain(DistributedDataParallel(model), *arguments)

    torchvision_detection.train_one_epoch = wrapped
    torchvision_detection.make_pictures = lambda count: make_pictures(count, seed=rank)
    history = torchvision_detection.main(steps=4)
    return {"gradients": gradients, "history": history, "weights": models[0].state_dict()}


def transformers_host(_rank: int) -> dict[str, object]:
    import transformers_trainer

    trainer = transformers_trainer.main(12, ddp_backend="gloo", per_device_train_batch_size=2)
    wrapper = type(trainer.model_wrapped).__name__
    return {"history": trainer.history, "weights": trainer.model.state_dict(), "wrapper": wrapper}


def main(host: str, rank: int, port: str, folder: str) -> None:
    where = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    os.environ.update(where | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    result = {"torchvision": torchvision_host, "transformers": transformers_host}[host](rank)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # at a usual exit gloo now and then ends the process with an error after all is done


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
