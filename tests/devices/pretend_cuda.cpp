// Lets a CPU build of PyTorch accept tensors that report cuda:0; see pretend.py.
//
// The autograd engine counts devices when it first runs and asks a device guard for their streams: the guard is
// registered when this library is loaded. It also asks the CUDA hooks whether there is an accelerator. PyTorch makes
// these once, when it is imported; `pretend_cuda` puts other answers in their place, and back.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <new>

namespace c10::impl {

struct PretendGuard final : public NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return Device(DeviceType::CUDA, 0); }
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Stream getStream(Device device) const noexcept override { return Stream(Stream::DEFAULT, device); }
  Stream getNewStream(Device device, int = 0) const override { return Stream(Stream::DEFAULT, device); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

C10_REGISTER_GUARD_IMPL(CUDA, PretendGuard);

}  // namespace c10::impl

namespace at {

struct PretendHooks final : public CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
};

static_assert(sizeof(PretendHooks) == sizeof(CUDAHooksInterface), "the hooks are replaced in place");

}  // namespace at

extern "C" void pretend_cuda(int on) {
  auto* hooks = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  if (on) {
    new (hooks) at::PretendHooks();
  } else {
    new (hooks) at::CUDAHooksInterface();
  }
}
