"""The library carries every kernel file as one text that compiles by itself."""

from rig import compile as rig_compile


def test_every_kernel_file_is_embedded_and_names_no_file_of_ours(host):
    texts = host.embedded_texts()
    folder = rig_compile.RIG.parents[2] / "metal"
    assert sorted(texts) == sorted(path.name for path in folder.glob("*.metal"))
    for name, text in texts.items():
        assert '#include "' not in text, name
        assert text.count("struct MatvecArgs {") == 1, name


def test_an_embedded_text_compiles_without_any_other_file(host, tmp_path):
    source = tmp_path / "ends.metal"
    source.write_text(host.embedded_texts()["ends.metal"])
    rig_compile.compile_metal(source, tmp_path / "ends.so")
    assert (tmp_path / "ends.so").stat().st_size > 0
