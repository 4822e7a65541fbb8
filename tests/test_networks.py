"""Networks of timm and transformers by name: their weights from local files, built again without these, and what is refused."""

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("timm")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

from cls2det.models.last_layer import output_layers
from cls2det.models.networks import load_network, rebuild_network
from cls2det.teachers.reader import as_logits
from foreign_networks import PROCESSOR, SIZE, hf_folder, hf_model, timm_file

KINDS = ("clip", "siglip", "vit", "dinov3", "resnet")
WIDTHS = {"clip": 24, "siglip": 32, "vit": 32, "dinov3": 32, "resnet": 16}  # of the embeddings


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    return {kind: hf_folder(root / kind, kind) for kind in KINDS}


def outputs(module, size=SIZE):
    return as_logits(module.eval()(torch.linspace(-1, 1, 2 * 3 * size * size).view(2, 3, size, size).sin()))


@pytest.mark.parametrize("size", [SIZE, 48])
@pytest.mark.parametrize("classes", [5, None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers_is_read_and_built_again_without_it(folders, kind, classes, size):
    loaded = load_network(f"hf:{folders[kind]}", classes, size=size)
    values = outputs(loaded.module, size)
    assert values.shape == (2, classes or WIDTHS[kind]) and values.isfinite().all()
    assert loaded.mean == tuple(PROCESSOR["image_mean"]) and loaded.std == tuple(PROCESSOR["image_std"])
    assert loaded.size == SIZE and str(folders[kind]) in loaded.started_from
    assert str(folders[kind]) not in str(loaded.config)
    again = rebuild_network("hf:nowhere", classes, loaded.config)
    assert not torch.equal(outputs(again, size), values)  # random
    again.load_state_dict(loaded.module.state_dict())
    assert torch.equal(outputs(again, size), values)


def test_the_weights_are_those_of_the_folder(folders):
    """The body's to the bit; of a classifier for another number of classes the last layer is new."""
    saved = hf_model("vit").state_dict()
    loaded = load_network(f"hf:{folders['vit']}", 5).module.state_dict()
    changed = {name for name in saved if saved[name].shape != loaded[name].shape or not torch.equal(saved[name], loaded[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    whole = load_network(f"hf:{folders['vit']}", 9).module.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in saved.items())
    file = load_network(f"hf:{folders['vit']}", 5, folders["vit"] / "model.safetensors").module.state_dict()
    assert all(torch.equal(file[name], loaded[name]) for name in saved.keys() - changed)


def test_an_encoder_is_what_the_library_gives(folders):
    images = torch.randn(2, 3, SIZE, SIZE)
    clip, siglip = (hf_model(kind).eval() for kind in ("clip", "siglip"))
    for kind, model in (("clip", clip), ("siglip", siglip)):
        expected = model.get_image_features(images).pooler_output
        torch.testing.assert_close(load_network(f"hf:{folders[kind]}", None).module.eval()(images), expected)
    # A classifier has no pooling that was trained: its class token is taken, as its last layer takes it.
    token = hf_model("vit").eval().vit(images).last_hidden_state[:, 0]
    torch.testing.assert_close(load_network(f"hf:{folders['vit']}", None).module.eval()(images), token)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_file_of_timm_is_read(tmp_path, name):
    import timm

    file = timm_file(tmp_path / "model.safetensors", name)
    torch.manual_seed(0)
    expected = timm.create_model(name, num_classes=9)
    whole = load_network(f"timm:{name}", 9, tmp_path)
    assert torch.equal(outputs(whole.module, 160), outputs(expected, 160)) and whole.started_from == str(tmp_path)
    for classes, width in ((5, 5), (None, expected.num_features)):
        loaded = load_network(f"timm:{name}", classes, file, size=96)
        assert outputs(loaded.module, 96).shape == (2, width) and loaded.mean == (0.5, 0.5, 0.5) and loaded.size == 160
        again = rebuild_network(f"timm:{name}", classes, loaded.config)
        again.load_state_dict(loaded.module.state_dict())
        assert torch.equal(outputs(again, 96), outputs(loaded.module, 96))


def test_a_file_of_torchvision_is_read(tmp_path):
    network = resnet18(num_classes=9).eval()
    save_file(network.state_dict(), tmp_path / "r.safetensors")
    assert torch.equal(outputs(load_network("resnet18", 9, tmp_path / "r.safetensors").module), outputs(network))
    encoder = load_network("resnet18", None, tmp_path / "r.safetensors").module
    torch.testing.assert_close(network.fc(outputs(encoder)), outputs(network))
    assert load_network("resnet18", 3, "none").started_from == "random weights"


def test_what_cannot_be_read_is_an_error(folders, tmp_path, monkeypatch):
    vit = timm_file(tmp_path / "vit.safetensors", "test_vit")
    partial = load_file(vit)
    partial.pop("blocks.0.attn.qkv.weight")
    save_file(partial, tmp_path / "partial.safetensors")
    torch.save(partial, tmp_path / "pickle.pt")
    of_resnet = timm_file(tmp_path / "resnet.safetensors", "test_resnet")
    folder = f"hf:{folders['vit']}"
    for name, weights, error, message in (
        ("timm:resnt50", "none", ValueError, r"no network 'resnt50'; near are resnet50"),
        ("no_net", "none", ValueError, r"no network 'no_net': names are timm:NAME, hf:NAME or hf:FOLDER, or torchvision's"),
        ("timm:test_vit", "imagnet", FileNotFoundError, r"are none, auto, pretrained, imagenet, or the path .*at imagnet"),
        ("timm:test_vit", tmp_path / "partial.safetensors", ValueError, r"partial\.safetensors does not hold .*qkv"),
        ("timm:test_vit", of_resnet, ValueError, r"resnet\.safetensors does not hold the weights of timm:test_vit"),
        ("timm:test_vit", tmp_path / "pickle.pt", ValueError, r"pickle\.pt holds no safetensors .*pickles are not read"),
        ("resnet18", of_resnet, ValueError, r"resnet\.safetensors does not hold the weights of resnet18"),
        (folder, of_resnet, ValueError, r"resnet\.safetensors lacks weights of ViTForImageClassification"),
        (folder, folders["clip"], ValueError, r"clip lacks weights of ViTForImageClassification"),
        (f"hf:{tmp_path}", "none", FileNotFoundError, r"has no config\.json"),
    ):
        with pytest.raises(error, match=message):
            load_network(name, 5, weights)
    with pytest.raises(ValueError, match=r"timm:test_vit takes no images of 50 pixels .*made for 160 \(--crop-size\)"):
        load_network("timm:test_vit", 5, "none", size=50)
    with pytest.raises(ValueError, match=r"takes no images of 8 pixels .*made for 64"):
        load_network(folder, 5, size=8)


def test_without_a_network_the_option_for_a_file_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("cls2det.models.backbones.load_into_cache", lambda _: (_ for _ in ()).throw(OSError("no network")))
    for name in ("hf:google/vit-base-patch16-224", "timm:test_resnet", "resnet18"):
        with pytest.raises(ConnectionError, match=r"cannot be fetched: .*--backbone-weights PATH"):
            load_network(name, 5)
    with pytest.warns(UserWarning, match="timm:test_resnet starts from random weights: its weights cannot be fetched"):
        assert load_network("timm:test_resnet", 5, "auto").started_from == "random weights"


def test_a_checkpoint_in_half_precision_is_read_in_float32(tmp_path):
    hf_folder(tmp_path, "vit")
    hf_model("vit").half().save_pretrained(tmp_path)
    for weights in ("pretrained", tmp_path / "model.safetensors"):
        loaded = load_network(f"hf:{tmp_path}", 5, weights)
        again = rebuild_network("hf:nowhere", 5, loaded.config)
        for module in (loaded.module, again):
            assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_doubtful_folders_are_warned_of(folders, tmp_path):
    with pytest.warns(UserWarning, match="starts from random weights, though the folder holds some"):
        assert load_network(f"hf:{folders['vit']}", 5, "none").started_from == "random weights"
    with pytest.warns(
        UserWarning, match="patches of 16 pixels: of images of 56 the last 8 are not seen; take a multiple of 16"
    ):
        load_network(f"hf:{folders['vit']}", 5, size=56)
    hf_folder(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match=r"no preprocessor_config.json: it is believed to want images of mean \(0\.485"):
        load_network(f"hf:{tmp_path}", 5)


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet", "resnet18", "squeezenet1_0", *KINDS])
def test_a_probe_trains_what_gives_the_outputs(folders, name):
    network = load_network(f"hf:{folders[name]}" if name in folders else name, 5, "pretrained" if name in folders else "none")
    layers = output_layers(network.module)
    sizes = [parameter.shape[0] for layer in layers for parameter in layer.parameters()]
    assert sizes and set(sizes) == {5}
