"""The Objective-C header made from metal-cpp has what our code sends, with Apple's selectors."""

import re

import pytest

from host import metal_headers

METAL_CPP_SAMPLE = {
    "MTLHeaderBridge.hpp": """
_MTL_PRIVATE_DEF_CLS(MTLThing)
_MTL_PRIVATE_DEF_PRO(MTLBuffer)
_MTL_PRIVATE_DEF_SEL(setBuffer_offset_, "setBuffer:offset:")
_MTL_PRIVATE_DEF_SEL(length, "length")
_MTL_PRIVATE_DEF_SEL(rays, "rays:")
""",
    "MTLThing.hpp": """
class Thing : public NS::Copying<Thing>
_MTL_ENUM(NS::UInteger, Mode) { ModeA = 0, ModeB = ModeA + 1, };
_MTL_INLINE void MTL::Thing::setBuffer(const MTL::Buffer* buffer, NS::UInteger offset)
{
    Object::sendMessage<void>(this, _MTL_PRIVATE_SEL(setBuffer_offset_), buffer, offset);
}
_MTL_INLINE NS::UInteger MTL::Thing::length() const
{
    return Object::sendMessage<NS::UInteger>(this, _MTL_PRIVATE_SEL(length));
}
_MTL_INLINE void MTL::Thing::rays(const MTL::RayDescriptor& ray)
{
    Object::sendMessage<void>(this, _MTL_PRIVATE_SEL(rays), ray);
}
""",
}


@pytest.fixture
def sample(tmp_path):
    folder = tmp_path / "Metal"
    folder.mkdir()
    for name, text in METAL_CPP_SAMPLE.items():
        (folder / name).write_text(text)
    return tmp_path


def test_methods_keep_selector_types_and_names(sample, tmp_path):
    metal_headers.write_metal_header(sample, tmp_path / "out")
    text = (tmp_path / "out/Metal/Metal.h").read_text()
    assert "- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset;" in text
    assert "- (NSUInteger)length;" in text
    assert "typedef NS_ENUM(NSUInteger, MTLMode) { MTLModeA = 0, MTLModeB = MTLModeA + 1 };" in text


def test_methods_whose_types_have_no_word_here_are_left_out_and_counted(sample, tmp_path):
    api = metal_headers.write_metal_header(sample, tmp_path / "out")
    assert len(api.skipped) == 1
    assert "rays" not in (tmp_path / "out/Metal/Metal.h").read_text().split("@interface")[1]


def test_the_real_header_has_every_method_that_the_backend_sends(host):
    text = (host.headers() / "Metal/Metal.h").read_text()
    for selector in (
        "newBufferWithBytesNoCopy:(const void*)",
        "computeCommandEncoderWithDispatchType:",
        "memoryBarrierWithScope:",
        "encodeSignalEvent:(id<MTLEvent>)",
        "waitUntilSignaledValue:(uint64_t)",
        "addCompletedHandler:(void (^)(id<MTLCommandBuffer>))",
        "newLibraryWithData:(dispatch_data_t)",
        "recommendedMaxWorkingSetSize",
    ):
        assert selector in text or re.search(re.escape(selector), text), selector
    assert text.count("@protocol") > 77
