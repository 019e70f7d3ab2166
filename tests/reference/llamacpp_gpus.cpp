// GPUs that only exist on paper, for llama.cpp: they take every buffer and compute nothing.
//
// A device says how much memory it has, which buffers it can use and which operations it runs, as llama.cpp's CUDA
// backend does (b11434, ggml/src/ggml-cuda): 128 bytes of alignment, rows of quantised tensors padded to 512 elements,
// 16-bit copies of a quantised cache behind the result of flash attention, and operations on host weights taken over
// from 32 rows on. llama.cpp's own loader, scheduler and allocator then decide where everything goes and how large each
// buffer is, and its log says so. Built and driven by llamacpp_gpus.py.

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "ggml.h"

namespace {

constexpr int64_t ROW_PADDING = 512;
constexpr int64_t OFFLOAD_ROWS = 32;

struct Gpu {
    std::string name, id;
    size_t free_bytes = 0, total_bytes = 0;
    ggml_backend_buffer_type buft{};
    ggml_backend_device dev{};
};

std::vector<Gpu *> gpus;
std::string allocated;
uintptr_t next_address = uintptr_t(1) << 44;

Gpu * of(ggml_backend_dev_t dev) { return static_cast<Gpu *>(dev->context); }
Gpu * of(ggml_backend_buffer_type_t buft) { return static_cast<Gpu *>(buft->context); }
const char * buft_name(ggml_backend_buffer_type_t buft) { return of(buft)->name.c_str(); }
bool ours(ggml_backend_buffer_type_t buft) { return buft->iface.get_name == buft_name; }

// Buffers: addresses that nobody touches.

void * base(ggml_backend_buffer_t buffer) { return buffer->context; }
void set(ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {}
void get(ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t) {}
void fill(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {}
bool copy(ggml_backend_buffer_t, const ggml_tensor *, ggml_tensor *) { return true; }
void clear(ggml_backend_buffer_t, uint8_t) {}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_i i{};
    i.get_base = base;
    i.memset_tensor = fill;
    i.set_tensor = set;
    i.get_tensor = get;
    i.cpy_tensor = copy;
    i.clear = clear;
    void * at = reinterpret_cast<void *>(next_address);
    allocated += of(buft)->name + " " + std::to_string(size) + "\n";
    next_address += (size + 0xfffff) & ~uintptr_t(0xfffff);
    return ggml_backend_buffer_init(buft, i, at, size);
}

size_t alignment(ggml_backend_buffer_type_t) { return 128; }

size_t alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * t) {
    size_t size = ggml_nbytes(t);
    if (t->op == GGML_OP_FLASH_ATTN_EXT) {
        for (int i = 1; i <= 2; i++) {
            const ggml_tensor *source = t->src[i], *keys = t->src[1];
            const bool latent = i == 2 && source->view_src &&
                (source->view_src == keys || (source->view_src == keys->view_src && source->view_offs == keys->view_offs));
            if (source->type != GGML_TYPE_F16 && !latent) {
                size = (size + 127) / 128 * 128 + ggml_nelements(source) * 2;
            }
        }
    }
    if (ggml_is_quantized(t->type) && t->ne[0] % ROW_PADDING != 0) {
        size += ggml_row_size(t->type, ROW_PADDING - t->ne[0] % ROW_PADDING);
    }
    return size;
}

// Host memory that copies can be made from at full speed; reserved, never touched.

const char * host_name(ggml_backend_buffer_type_t) { return "CUDA_Host"; }
void host_free(ggml_backend_buffer_t buffer) { munmap(buffer->context, buffer->size); }
ggml_backend_buffer_t host_allocate(ggml_backend_buffer_type_t buft, size_t size) {
    void * at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        return nullptr;
    }
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(at, size);
    buffer->buft = buft;
    buffer->iface.free_buffer = host_free;
    return buffer;
}
ggml_backend_buffer_type_t host_type() {
    static ggml_backend_buffer_type type = [] {
        ggml_backend_buffer_type t = *ggml_backend_cpu_buffer_type();
        t.iface.get_name = host_name;
        t.iface.alloc_buffer = host_allocate;
        t.device = &gpus[0]->dev;
        return t;
    }();
    return &type;
}

// Backends: what would run.

const char * backend_name(ggml_backend_t backend) { return of(backend->device)->name.c_str(); }
void backend_free(ggml_backend_t backend) { delete backend; }
void set_async(ggml_backend_t, ggml_tensor *, const void *, size_t, size_t) {}
void get_async(ggml_backend_t, const ggml_tensor *, void *, size_t, size_t) {}
bool copy_async(ggml_backend_t, ggml_backend_t, const ggml_tensor *, ggml_tensor *) { return true; }
void synchronize(ggml_backend_t) {}
ggml_status compute(ggml_backend_t, ggml_cgraph *) { return GGML_STATUS_SUCCESS; }
void record(ggml_backend_t, ggml_backend_event_t) {}
void wait(ggml_backend_t, ggml_backend_event_t) {}
ggml_guid_t guid() {
    static ggml_guid id = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    return &id;
}

ggml_backend_t start(ggml_backend_dev_t dev, const char *) {
    ggml_backend_i i{};
    i.get_name = backend_name;
    i.free = backend_free;
    i.set_tensor_async = set_async;
    i.get_tensor_async = get_async;
    i.cpy_tensor_async = copy_async;
    i.synchronize = synchronize;
    i.graph_compute = compute;
    i.event_record = record;
    i.event_wait = wait;
    return new ggml_backend{guid(), i, dev, nullptr};
}

// Devices.

const char * dev_name(ggml_backend_dev_t dev) { return of(dev)->name.c_str(); }
const char * dev_words(ggml_backend_dev_t) { return "on paper"; }
void dev_memory(ggml_backend_dev_t dev, size_t * free_bytes, size_t * total_bytes) {
    *free_bytes = of(dev)->free_bytes;
    *total_bytes = of(dev)->total_bytes;
}
enum ggml_backend_dev_type dev_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
void dev_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    props->name = dev_name(dev);
    props->description = dev_words(dev);
    props->type = dev_type(dev);
    props->device_id = of(dev)->id.c_str();
    dev_memory(dev, &props->memory_free, &props->memory_total);
    props->caps = {/*async*/ true, /*host_buffer*/ true, /*from_host_ptr*/ false, /*events*/ true, /*mmap*/ true};
}
ggml_backend_buffer_type_t dev_buft(ggml_backend_dev_t dev) { return &of(dev)->buft; }
ggml_backend_buffer_type_t dev_host_buft(ggml_backend_dev_t) { return host_type(); }

// Heads that CUDA's flash attention has kernels for (ggml-cuda/fattn.cu; a card with tensor cores).
bool attends(const ggml_tensor * op) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
    const int64_t keys = k->ne[0], values = v->ne[0], shared = q->ne[2] / k->ne[2];
    const bool together = shared >= 2 && mask && k->ne[1] % 256 == 0;
    switch (keys) {
        case 40: case 64: case 72: case 80: case 96: case 112: case 128: case 256: return keys == values;
        case 192: return values == 128 && together && shared % 8 == 0;
        case 320: return values == 256 && together && shared % 32 == 0;
        case 512: return keys == values && together;
        case 576: return values == 512 && together;
        default: return false;
    }
}

bool runs(ggml_backend_dev_t dev, const ggml_tensor * op) {
    for (const ggml_tensor * source : op->src) {
        if (source && source->buffer && ours(source->buffer->buft) && source->buffer->buft->device != dev) {
            return false;
        }
    }
    return op->op != GGML_OP_FLASH_ATTN_EXT || attends(op);
}
bool uses(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) { return ours(buft) && buft->device == dev; }

bool takes_over(ggml_backend_dev_t, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS: return false;
        case GGML_OP_MUL_MAT: return op->ne[1] >= OFFLOAD_ROWS;
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE: return op->ne[2] >= OFFLOAD_ROWS;
        default: return ggml_nrows(op) >= OFFLOAD_ROWS;
    }
}
ggml_backend_event_t event_new(ggml_backend_dev_t dev) { return new ggml_backend_event{dev, nullptr}; }
void event_free(ggml_backend_dev_t, ggml_backend_event_t event) { delete event; }
void event_synchronize(ggml_backend_dev_t, ggml_backend_event_t) {}

const char * reg_name(ggml_backend_reg_t) { return "CUDA"; }
size_t reg_count(ggml_backend_reg_t) { return gpus.size(); }
ggml_backend_dev_t reg_dev(ggml_backend_reg_t, size_t i) { return &gpus[i]->dev; }
void * reg_proc(ggml_backend_reg_t, const char *) { return nullptr; }
ggml_backend_reg reg{};

}  // namespace

/// Lines of "device bytes", one a buffer since the last call.
extern "C" const char * paper_buffers() {
    static std::string last;
    last = std::move(allocated);
    allocated.clear();
    return last.c_str();
}

/// Registers one device for each number of free bytes.
extern "C" void paper_gpus(const size_t * free_bytes, int count) {
    reg.api_version = GGML_BACKEND_API_VERSION;
    reg.iface.get_name = reg_name;
    reg.iface.get_device_count = reg_count;
    reg.iface.get_device = reg_dev;
    reg.iface.get_proc_address = reg_proc;
    for (int i = 0; i < count; i++) {
        Gpu * gpu = new Gpu;
        gpu->name = "CUDA" + std::to_string(i);
        gpu->id = "0000:0" + std::to_string(i) + ":00.0";
        gpu->free_bytes = free_bytes[i];
        gpu->total_bytes = free_bytes[i] + (size_t(512) << 20);
        gpu->buft.iface.get_name = buft_name;
        gpu->buft.iface.alloc_buffer = allocate;
        gpu->buft.iface.get_alignment = alignment;
        gpu->buft.iface.get_alloc_size = alloc_size;
        gpu->buft.device = &gpu->dev;
        gpu->buft.context = gpu;
        ggml_backend_device_i & d = gpu->dev.iface;
        d.get_name = dev_name;
        d.get_description = dev_words;
        d.get_memory = dev_memory;
        d.get_type = dev_type;
        d.get_props = dev_props;
        d.init_backend = start;
        d.get_buffer_type = dev_buft;
        d.get_host_buffer_type = dev_host_buft;
        d.supports_op = runs;
        d.supports_buft = uses;
        d.offload_op = takes_over;
        d.event_new = event_new;
        d.event_free = event_free;
        d.event_synchronize = event_synchronize;
        gpu->dev.reg = &reg;
        gpu->dev.context = gpu;
        gpus.push_back(gpu);
    }
    ggml_backend_register(&reg);
}
