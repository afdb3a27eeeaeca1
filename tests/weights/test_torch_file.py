"""Files as PyTorch writes them, read and written without PyTorch."""

import base64
import io
import pathlib
import struct
import zipfile
import zlib

import numpy as np
import pytest

from ostrack_jax.weights import torch_file
from ostrack_jax.weights.torch_file import read_state_dict, write_torch_file

# torch.save({"epoch": 3, "stats": <object of an unknown class>, "net": ...}) of torch 2.13 in both of
# its layouts, compressed: names and values are in _EXPECTED.
_LAYOUTS = {
  "legacy": (
    "c-noG+jiST6ow_)If=9lXUZ|0Z4SY99M|ELqz$31dWu3p9Ey<TNu(l6{-"
    "se!3SKL{NN9NmE_%sh<RyB~EswxjT(C!@m^!GP<*}r#J>Nh2_sr~Rzv;n0zpwp0d-"
    "IQLr|0&x%YT*Ve*mRo%_xe}k0TzrQDASgIPs$pDkWGa=uO~r9x$7QUEc|z-LZ5E^4&hO6aN-VP#U0IvBoHvcu~wTW@uK"
    "4p8Sww+$dXR!HB{wOc>=fJ<=5UtRJ}^RHGzEbB8C;Tpl}q$YML%w3DdEqLAqujB`KSN_3Q}w^1Hotde2Fh%<~^D&6j2B"
    "BS^rjm4xV5~r+5iu4E)^0Wut<x%W<b9T!8AkpoZby7d*+MI<+6x-"
    "Vk9gkHi)<ia!D0a3OrsWWQEr=YxA%i+jSSKlGaelGgo^Q2lt@?bufs@%syZscW4DAZX%(|f%+CCmP)O|d0*ClTQ=5n$&"
    "(XYl`7PIcE?{XbaR!uy`@wAC&(oO~m8OO7ph(9Nd>IY;APJ1*xZ`yl6zPZqB)y_1VH9YT~GNwuP1tD89$_IGSC>!blUb"
    ">r+Ugmhk#H=h{?1V`_N>~@KK8pET&U{@k%SPz{Zy2gTzbTn-alCCpmV!Hefa;@Y@8q<1*Nt&QGqeM|CujJ+q|I@BV4{}"
    "MJSW&hUDEOroTt#R0*%oMG#A?>Fz-p{o4NA~!ughjpW$emSj^n)hy{iZN9bp>3fEghg^xxR7HW%)Ha;eW5-"
    "EI=nY@org~F0lSmszUan>5AVcjV01Ptd!Bv!NFP+;}AK%?EpXC$DKz?u+Hg*l(g%Xuksf#aeHBl`?DN@<5(8qv5!`)sI"
    "i`IthzzR<vxT;VDyRI8GDjbq(}nNc?bXDh+Rs5wy-45?onqc-PjO<d2d|1!7!D`AW!>0fhvW8zzDN-Sh2c6yA{4*l*Sn"
    "{k+-"
    "<HrA2ll+bv75n>K(asfr5Q>ge>~Odyx_7b%_A53`Y{>(s*XO(NidSi)*`f;g#8rrUQ*afr=6|H^L=^}myT=ilh_aJ~?e"
    "v|nOS`E5Fk-t_19HdXY^H*k2=oECB&HnOCVol>*vUMy>GPeg!yW7naLb~If}aQYB|DgoPUnH4CP~r}$LS4moEB^cwP=B"
    "9Ma#NWWN^7?^^6r2f4t~8oG3a1CW{=ODl$!HbDEO3wsNTEx7V|Ff2ou|?=4+8yoh0@qAb&I`6zoLzaG6;mH#sLmPDUc9"
    "&92e33N~W9`!@&e^OUg6lI3`EcM!oG9(_gd&~a<=w95-"
  ),
  "zip": (
    "c-o~{+iw(A7(aXIwhXl`h$4uH6m_dm_P$##EsVGVgVGLyBVN|o-"
    "RbVg?96^MXG@D|QiHAVMtn6<U;P7&4<@GZKadFV!3Pr`jKRcb6D6K=X1mNerLA;NdNSR~`CY#6ob!F#PAZWoLVbN`)fh"
    "tCk?vON=8SQ;s$+e$dBrNq1L!h07Q*v@;#v;@7)_^AhmaCspFFH%55g7f>ZWbDC1<+iISs?H4e5e`v1!*l2_hpOLv$W`"
    ";u<l5YzG?<(?aCeS?FafrcJQWSEmcNXw+qckl47@0I7l<VsEt6!lva(CD$moOsiVLhV40SX(lDX)_7d&WnLUtuNlzqL!"
    "_eR==g&FQi8{rVgd%V2zgeTEf`e77>1@4q=Xk?n-"
    "W@t?KdkG$FhtHHXYlO&bw8^HL9n~3YOsU5fye|ctV9ITV=*!8yI%h>HDYr)HE%U1lUz4hU)!wUoZ)~>w`)^hNr1eM2Rl"
    "J9wn-Tmf)G247(S@vnuS<B(j)f(e|2-"
    "XH?<26_$D%zn|ixN@NL!l@O&l;Nzdi@PZ02veaVTv>+}bN2ZjR5>~=X@RG0mvX4B7;gAZW3|ZH$X*ld7+vz(^UUjmUV8"
    "NsyS!Y>GwX>F{S<CozSqwQ9@+=c&dK{p@@yTpIlDQ7&7~@RC5yBb4aFiuz5sp#L<38s&h6xo;Xfd*|>a@z10Vg@qQ|x7"
    "jQf8DHc!f}gFr1>4AsX_l{-fyAzJ}qn3TK$riqo<&oaI>0Id-kXsW8qgobx$fC!8ZAKF=E%&Z{uVc&07A=D`#nvg24C9"
    "+mOr;DVpRH`^(^NW;D4^Sy;ZQ{ioG3q4G_t2Ycx?#1Obu0Usn1n+QXE)Vbe8t=6=-"
    "lrNRU*iJ|x(ekR>_g>KsH$N27rW8Kb1=;@6`)3#5QaKsLiF^R<Peige(1AZ!C<M-V0YG-ZR&QFoL!sa7z4-8T$8z>96-"
    "sI!1Xyi3|NI$YaV7;<Ruc6PHPcdorhVCRw<a9himMT&ls*pE+>4XggnnHw?-$G-"
    "oE6Y_y75v9Ai2s*DQ5A(Y{Wp8=ZFChK@^Zx}v;CsCfKHQk8H2`sF$eh|aZDcBA|Qm3B!g>6TfuX+<l_>2-"
    "zH7`Y5JFmV<B2os6$x(2qPiH?Et95x(U#ftLL&FHQS%f#3+sE5VlzwM&8F}ALU0W{8amBWdme54Bl2rW#|Ngdppirt}-"
    "eH%D9#ydzB<pSEgJ{{BpIzfKOTp;r+GMCBxl}vP!^ineSk(oG2ea_BLk0)r$*}&%x-"
    "e;;P53TZv3TT;fe)6?;i<ax?2An5&&U8^e*3I@`UYIzud={vK`~M!eyNUhJbhrN(*|@{@|3)e^w~77FcC-JzZC0w^y!*"
    "Se3H@9*`XQ$L{qPUk#`k{!$-HvDD35ow`|SL)b5C7-"
    "a}$5Z$B+I`{Dp4fe}wxp_R#x7?ke?e?EmubjqlH3pn`T9L|64QEm8F!zo=c@c>ngI)Pn}XLh=mPBpu|MPQR9x%xX~{eM"
    "B?KR63u}B@>xMAvc!EWDAL0K9Nl&^XWo1mC9ubW9dvXpJi?CxNFVDiH|sQ8KP!8K7);RXq9vE?+6hcY@j<i<h>|bt2K)"
    "x!6vwyBbn+!>vUd`C)migaXhyJJe>wA!h>CCfP-"
    "I(A))t)*kEViu|JF0q=*f603N&0D_~P1HdwoP>`x*#En<UJSBSSyz-"
    "B~juwn}FirB1(4c0s!OTR1f6;{LsD;1BuEn@R4*oW6LPFE7J1yMIxWq9neh#eEL!5T5hVRvjrVpS5s!K=HM1Ai6(KfI_"
    "+DzVtXl@b&=6!-@L|GXFRpN0OFmKbB*ak#y}|90FH^D#qgy}$N9{A|Z="
  ),
}
_BASE = np.arange(12, dtype=np.float32).reshape(3, 4)
_EXPECTED = {
  "plain": _BASE,
  "transposed": _BASE.T,
  "tail": _BASE[1:, 2:],
  "half": np.array([0.5, -2], np.float16),
  "brain": np.array([1, -3.140625, np.uint32(0x714A0000).view(np.float32)], np.float32),
  "double": np.array([[1 / 3]]),
  "count": np.array(7),
  "flags": np.array([True, False]),
  "parameter": np.array([2, 3], np.float32),
  "empty": np.zeros((0, 3), np.float32),
  "expanded": np.full((2, 3), 5, np.float32),
}


@pytest.fixture(params=_LAYOUTS)
def torch_bytes(request):
  return zlib.decompress(base64.b85decode(_LAYOUTS[request.param]))


def _write(folder: pathlib.Path, data: bytes) -> pathlib.Path:
  path = folder / "weights.pth"
  path.write_bytes(data)
  return path


def _assert_same(found, expected):
  assert list(found) == list(expected)
  for name, array in expected.items():
    assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_both_layouts_of_pytorch_give_every_type_and_view(torch_bytes, tmp_path):
  key, tensors, _ = read_state_dict(_write(tmp_path, torch_bytes))
  assert key == "net"
  _assert_same(tensors, _EXPECTED)


def test_a_file_cut_off_anywhere_is_refused_by_name(torch_bytes, tmp_path):
  for length in range(0, len(torch_bytes), 29):
    with pytest.raises(ValueError, match=r"weights\.pth is ") as error:
      read_state_dict(_write(tmp_path, torch_bytes[:length]))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_bytes_changed_anywhere_never_fail_in_another_way(torch_bytes, tmp_path):
  rng = np.random.default_rng(1)
  refused = 0
  for _ in range(300):
    mutant = bytearray(torch_bytes)
    for position in rng.integers(len(mutant), size=4):
      mutant[position] = rng.integers(256)
    try:
      read_state_dict(_write(tmp_path, mutant))
    except ValueError:
      refused += 1
  assert refused > 150


def _repack(data: bytes, changes: dict[str, bytes | None], compression=zipfile.ZIP_STORED) -> bytes:
  """Rewrite a zip with other contents under some names, None leaving a member out."""
  target = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w", compression) as new:
    for name in old.namelist():
      content = changes.get(name.split("/", 1)[1], old.read(name))
      if content is not None:
        new.writestr(name, content)
  return target.getvalue()


def _zip_bytes() -> bytes:
  return zlib.decompress(base64.b85decode(_LAYOUTS["zip"]))


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damaged_pickles_never_fail_in_another_way(tmp_path):
  whole = _zip_bytes()
  program = bytearray(zipfile.ZipFile(io.BytesIO(whole)).read("archive/data.pkl"))
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(300):
    mutant = bytearray(program)
    for position in rng.integers(len(mutant), size=3):
      mutant[position] = rng.integers(256)
    path = _write(tmp_path, _repack(whole, {"data.pkl": bytes(mutant)}))
    try:
      read_state_dict(path)
    except ValueError as error:
      refused += 1
      assert str(path) in str(error)
  assert refused > 100


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"data/1": None}, "member 'data/1' is missing"),
    ({"data/1": b"1234567"}, "'plain' of shape \\(3, 4\\) needs 12 elements .* which has 1"),
    ({"data.pkl": None}, "without a data.pkl, not a PyTorch checkpoint"),
    ({"byteorder": b"middle"}, "byte order b'middle'; expected little or big"),
    ({"data.pkl": b"\x80\x02K\x05."}, "holds a int; expected a state dict"),
    ({"data.pkl": b"\x80\x02}X\x01\0\0\0aK\x05s."}, "no tensors at its top .* found 'a'"),
    (
      {"data.pkl": b"\x80\x02cmy.code\nNet\n)\x81."},
      "whole my.code.Net object; save its state_dict",
    ),
  ],
)
def test_what_is_wrong_inside_a_zip_is_said(changes, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    read_state_dict(_write(tmp_path, _repack(_zip_bytes(), changes)))


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path):
  data = bytearray(_zip_bytes())
  position = data.index(_BASE.tobytes())
  data[position + 2] ^= 1
  with pytest.raises(ValueError, match="damaged at its member 'data/1'"):
    read_state_dict(_write(tmp_path, bytes(data)))


def test_compressed_members_are_refused_since_they_could_be_bombs(tmp_path):
  data = _repack(_zip_bytes(), {}, zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match="compressed member 'byteorder'"):
    read_state_dict(_write(tmp_path, data))


def test_big_endian_archives_are_read(tmp_path):
  swapped = _BASE.astype(">f4").tobytes()
  with zipfile.ZipFile(io.BytesIO(_zip_bytes())) as archive:
    brain = next(
      n for n in archive.namelist() if "/data/" in n and archive.getinfo(n).file_size == 6
    )
    brain_data = np.frombuffer(archive.read(brain), "<u2").astype(">u2").tobytes()
  changes = {"byteorder": b"big", "data/1": swapped, brain.split("/", 1)[1]: brain_data}
  tensors = read_state_dict(_write(tmp_path, _repack(_zip_bytes(), changes))).tensors
  for name in ("transposed", "brain"):
    np.testing.assert_array_equal(tensors[name], _EXPECTED[name])


@pytest.mark.parametrize(
  ("data", "words"),
  [
    (b"", "is empty, not a PyTorch checkpoint"),
    (b"<!DOCTYPE html><html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"\x80\x02K\x05.", "is some other file"),
    (b"\0" * 257 + b"ustar" + b"\0" * 800, "tar layout"),
    (b"PK\x03\x04" + b"\0" * 99, "truncated or damaged zip"),
  ],
)
def test_other_files_are_refused_in_words(data, words, tmp_path):
  path = _write(tmp_path, data)
  with pytest.raises(ValueError, match=words) as error:
    read_state_dict(path)
  assert str(error.value).startswith(str(path))


def test_a_torchscript_archive_is_named(tmp_path):
  path = tmp_path / "script.pt"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("script/data.pkl", b"\x80\x02}.")
    archive.writestr("script/constants.pkl", b"\x80\x02).")
  with pytest.raises(ValueError, match="TorchScript"):
    read_state_dict(path)


def test_an_absent_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
    read_state_dict(tmp_path / "absent.pth")


@pytest.mark.parametrize("key", ["net", "model", "state_dict", None])
def test_state_dicts_are_found_wrapped_or_bare(key, tmp_path):
  state = {"a.weight": np.ones((2, 2), np.float32)}
  write_torch_file(tmp_path / "f.pth", {key: state, "epoch": 3} if key else state)
  found, tensors, _ = read_state_dict(tmp_path / "f.pth")
  assert found == key
  _assert_same(tensors, state)


def test_values_beside_the_tensors_are_passed_over(tmp_path):
  state = {"a": np.ones(2, np.float32), "version": 3, "nested": {"b": np.ones(1)}}
  write_torch_file(tmp_path / "f.pth", {"net": state})
  assert list(read_state_dict(tmp_path / "f.pth").tensors) == ["a"]


def test_storages_beside_the_state_dict_are_not_read(tmp_path):
  tree = {"net": {"a": np.ones(2, np.float32)}, "optimizer": {"b": np.ones(3, np.float32)}}
  write_torch_file(tmp_path / "f.pth", tree)
  data = _repack((tmp_path / "f.pth").read_bytes(), {"data/1": None})
  assert list(read_state_dict(_write(tmp_path, data)).tensors) == ["a"]


def test_a_tensor_beyond_its_storage_is_refused_without_reading_past_it(tmp_path):
  write_torch_file(tmp_path / "f.pth", {"a": np.zeros(3, np.float32)})
  data = (tmp_path / "f.pth").read_bytes()
  program = zipfile.ZipFile(io.BytesIO(data)).read("f/data.pkl")
  forged = program.replace(b"(K\x03t(K\x01t", b"(J" + struct.pack("<i", 10**9) + b"t(K\x01t")
  assert forged != program
  with pytest.raises(ValueError, match=r"'a' of shape .* needs 1000000000 elements"):
    read_state_dict(_write(tmp_path, _repack(data, {"data.pkl": forged})))


_TREE = {
  "net": {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.array(7, np.int64),
    "half": np.ones((1, 2), np.float16),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 4), np.float32),
  },
  "epoch": 300,
  "big": 2**40,
  "note": "Grüße",
  "pair": (1.5, None, False),
}


def test_written_files_are_read_back(tmp_path):
  write_torch_file(tmp_path / "f.pth.tar", _TREE)
  _assert_same(read_state_dict(tmp_path / "f.pth.tar").tensors, _TREE["net"])


def test_pytorch_reads_written_files_with_weights_only(tmp_path):
  torch = pytest.importorskip("torch")
  write_torch_file(tmp_path / "f.pth", _TREE)
  tree = torch.load(tmp_path / "f.pth", weights_only=True)
  _assert_same({name: t.numpy() for name, t in tree.pop("net").items()}, _TREE["net"])
  assert tree == {name: value for name, value in _TREE.items() if name != "net"}


@pytest.mark.parametrize("value", [np.array(["text"]), [1], b"bytes", np.zeros(1, np.uint32)])
def test_values_without_a_place_are_refused_and_nothing_is_left(value, tmp_path):
  with pytest.raises(ValueError, match="PyTorch file cannot hold"):
    write_torch_file(tmp_path / "f.pth", {"a": value})
  assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
  (tmp_path / "f.pth").write_bytes(b"old")

  def fail(*_args, **_kwargs):
    raise OSError("no space left on device")

  monkeypatch.setattr(torch_file.zipfile.ZipFile, "writestr", fail)
  with pytest.raises(OSError, match="no space"):
    write_torch_file(tmp_path / "f.pth", {"a": np.zeros(2)})
  assert [path.name for path in tmp_path.iterdir()] == ["f.pth"]
  assert (tmp_path / "f.pth").read_bytes() == b"old"
