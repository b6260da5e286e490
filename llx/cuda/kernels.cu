// Copies of the scattered parts of KV blocks: all parts of all blocks in one launch.
//
// Compiled when llx starts, by NVRTC, for the GPU at hand; no header is included. Nothing is shared
// between threads, so the tests run this very source on a CPU, one thread after the other.
//
// A block consists of parts. Part p of block b lies at parts[p].address + b * parts[p].stride and
// is bytes [offset, offset + size) of the block where it is packed. One warp copies one part of one
// block at a time; warps stride over all of them, so any grid does, and a small one leaves most of
// the GPU to others. Four accesses per lane are in flight, and what is copied is not kept in caches.

typedef unsigned long long u64;

struct Part {
    u64 address;
    u64 stride;
    u64 size;
    u64 offset;
};

// Ids of blocks, which come with the launch itself: it waits for no upload, and nothing of it has to
// be kept until it is done. In all, the parameters of a kernel may have 4 KiB.
struct Ids {
    int blocks[480];
};

// In widths of 16, 8, 4, 2 or 1 bytes: addresses, strides and sizes are multiples of it.
template <typename T>
__device__ __forceinline__ void copy_part(u64 to, u64 from, u64 size, unsigned lane) {
    T* d = reinterpret_cast<T*>(to);
    const T* s = reinterpret_cast<const T*>(from);
    const unsigned n = (unsigned)(size / sizeof(T));
    unsigned i = lane;
    for (; i + 96 < n; i += 128) {
        const T a = __ldcs(s + i);
        const T b = __ldcs(s + i + 32);
        const T c = __ldcs(s + i + 64);
        const T e = __ldcs(s + i + 96);
        __stcs(d + i, a);
        __stcs(d + i + 32, b);
        __stcs(d + i + 64, c);
        __stcs(d + i + 96, e);
    }
    for (; i < n; i += 32) __stcs(d + i, __ldcs(s + i));
}

// The caller keeps num_blocks * num_parts and the number of warps below 2^31.
#define FOR_EACH_PART(num_blocks, num_parts)                                     \
    const unsigned lane = threadIdx.x & 31u;                                     \
    const unsigned warps = gridDim.x * (blockDim.x >> 5);                        \
    const unsigned total = (num_blocks) * (num_parts);                           \
    for (unsigned i = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5),       \
                  b = i / (num_parts), p = i - b * (num_parts);                  \
         i < total; i += warps, b = i / (num_parts), p = i - b * (num_parts))

__device__ __forceinline__ u64 at(const Part& part, int block) {
    return part.address + (u64)block * part.stride;
}

// gather: blocks -> packed, block after block.  scatter: packed -> blocks.
// transfer: blocks of one cache -> blocks of another, whose parts have the same sizes.
#define KERNELS(T, WIDTH)                                                                      \
    extern "C" __global__ void __launch_bounds__(256) llx_gather_##WIDTH(                      \
        const Part* parts, unsigned num_parts, unsigned num_blocks, u64 packed,                \
        u64 block_bytes, const __grid_constant__ Ids ids) {                                    \
        FOR_EACH_PART(num_blocks, num_parts) {                                                 \
            const Part part = parts[p];                                                        \
            copy_part<T>(packed + b * block_bytes + part.offset, at(part, ids.blocks[b]),      \
                         part.size, lane);                                                     \
        }                                                                                      \
    }                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) llx_scatter_##WIDTH(                     \
        const Part* parts, unsigned num_parts, unsigned num_blocks, u64 packed,                \
        u64 block_bytes, const __grid_constant__ Ids ids) {                                    \
        FOR_EACH_PART(num_blocks, num_parts) {                                                 \
            const Part part = parts[p];                                                        \
            copy_part<T>(at(part, ids.blocks[b]), packed + b * block_bytes + part.offset,      \
                         part.size, lane);                                                     \
        }                                                                                      \
    }                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) llx_transfer_##WIDTH(                    \
        const Part* sources, const Part* targets, unsigned num_parts, unsigned num_blocks,     \
        const __grid_constant__ Ids source_ids, const __grid_constant__ Ids target_ids) {      \
        FOR_EACH_PART(num_blocks, num_parts) {                                                 \
            const Part target = targets[p];                                                    \
            copy_part<T>(at(target, target_ids.blocks[b]), at(sources[p], source_ids.blocks[b]), \
                         target.size, lane);                                                   \
        }                                                                                      \
    }

KERNELS(uint4, 16)
KERNELS(uint2, 8)
KERNELS(unsigned int, 4)
KERNELS(unsigned short, 2)
KERNELS(unsigned char, 1)
