/* Whether the processor and its system can run what this library is compiled for: asked before anything else is called.

   Nothing but integers here, so that no compiler uses for the question what is asked about. */
#include "vector.h"

#if defined(TARGET_AVX512) || defined(TARGET_AVX2)
#include <cpuid.h>

/* Parts of its registers that the system saves (XCR0): those of AVX, and of AVX-512 its masks and its upper halves. */
enum { SAVED_AVX = 0x06, SAVED_AVX512 = 0xe6 };

EXPORT int64_t ls_supported(void) {
    unsigned a, b, c, d, saved, upper;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
#if defined(TARGET_AVX512)
    const unsigned needed = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    return (saved & SAVED_AVX512) == SAVED_AVX512 && (b & needed) == needed;
#else
    return (saved & SAVED_AVX) == SAVED_AVX;
#endif
}

#else

EXPORT int64_t ls_supported(void) {
    return 1;
}

#endif
