"""The backend compiles for Apple's target, sends only selectors that Apple's headers name, and mistakes do not compile."""

import subprocess

import pytest

from host import build, typecheck


@pytest.fixture(scope="session")
def apple(host):
    if build.zig() is None:
        pytest.skip("ziglang is missing: pip install ziglang")
    return host


RIGHT = """[e setBuffer:b offset:0 atIndex:0];
[e dispatchThreads:MTLSizeMake(1, 1, 1) threadsPerThreadgroup:MTLSizeMake(1, 1, 1)];
[cb addCompletedHandler:^(id<MTLCommandBuffer>) {}];
id<MTLBuffer> q = [d newBufferWithLength:1 options:MTLResourceStorageModeShared]; (void)q;"""
MISTAKES = {
    "a misspelt selector": "[e setBuffer:b offset:0 index:0];",
    "a selector of another class": "[e commit];",
    "an argument of another class": "[e setBuffer:d offset:0 atIndex:0];",
    "an integer for a struct": "[e dispatchThreads:32 threadsPerThreadgroup:MTLSizeMake(1, 1, 1)];",
    "a missing argument": 'id x = [d newLibraryWithSource:@"" options:nil];',
    "an unknown constant": "id x = [d newBufferWithLength:1 options:MTLResourceStorageShared];",
    "a block of another type": "[cb addCompletedHandler:^(int) {}];",
    "another result type": "id<MTLTexture> t = [d newBufferWithLength:1 options:0];",
    "retain under ARC": "[b retain];",
    "a C string for an NSString": '[b setLabel:"x"];',
}


def snippet(host, body: str) -> str:
    source = host.cache / "snippet.mm"
    source.write_text(
        "#import <Metal/Metal.h>\nvoid f(id<MTLDevice> d, id<MTLComputeCommandEncoder> e, id<MTLCommandBuffer> cb,"
        f" id<MTLBuffer> b);\nvoid f(id<MTLDevice> d, id<MTLComputeCommandEncoder> e, id<MTLCommandBuffer> cb, id<MTLBuffer> b) {{\n{body}\n}}\n"
    )
    try:
        typecheck.compile_for_apple(host, source, host.cache / "snippet.o")
    except RuntimeError as error:
        return str(error)
    return ""


def test_right_code_compiles(apple):
    assert snippet(apple, RIGHT) == ""


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_mistakes_do_not_compile(apple, mistake):
    assert "error:" in snippet(apple, MISTAKES[mistake])


def test_the_backend_compiles_for_apple_and_sends_known_selectors(apple):
    image = typecheck.backend_object(apple)
    kind = subprocess.run(["file", image], capture_output=True, text=True, check=False).stdout
    assert not kind or "Mach-O" in kind
    sent = typecheck.sent_selectors(image)
    assert {"waitUntilSignaledValue:timeoutMS:", "memoryBarrierWithScope:"} <= sent
    assert not sent - typecheck.apple_selectors(apple) - typecheck.FOUNDATION


def test_the_whole_library_compiles_for_apple_and_leaves_only_apple_s_symbols_open(apple):
    open_symbols = typecheck.left_to_the_system([*typecheck.core_objects(apple), typecheck.backend_object(apple)])
    unknown = {name for name in open_symbols - typecheck.system_symbols() if not typecheck.RUNTIMES.match(name)}
    assert unknown == set()
    assert "_dispatch_group_async_f" in open_symbols


def test_the_whole_library_links_for_apple(apple, tmp_path):
    objects = [*typecheck.core_objects(apple), typecheck.backend_object(apple)]
    library = typecheck.link(objects, tmp_path)
    used = build.call("llvm-objdump-19", "--macho", "--dylibs-used", library)
    assert "@rpath/libflash_moe.dylib" in used
    assert "/usr/lib/libSystem.B.dylib" in used
    exported = build.call("llvm-nm-19", "--extern-only", "--defined-only", library)
    assert "create_metal_backend" in exported
    with pytest.raises(RuntimeError, match="undefined symbol: .*create_metal_backend"):
        typecheck.link(objects[:-1], tmp_path)
