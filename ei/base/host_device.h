#pragma once

// Before what kernels on a GPU call as well.
#if defined(__CUDACC__)
#define EI_HOST_DEVICE __host__ __device__
#else
#define EI_HOST_DEVICE
#endif
