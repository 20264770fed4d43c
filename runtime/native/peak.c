/* What a core can do at best: chains of multiply-adds that depend on nothing but themselves. LANES: floats per register,
 * CHAINS: registers; together enough to hide the latency of one, few enough to stay in registers. */
typedef float vector __attribute__((vector_size(4 * LANES)));

static volatile float sink[2] = {0.5f, 0.25f}; /* keeps them from being left out */

/* Multiply-adds of `steps` rounds over all chains. */
__attribute__((visibility("default"))) double peak(int steps) {
    vector chain[CHAINS];
    for (int i = 0; i < CHAINS; i++) chain[i] = (vector){0} + (float)i;
    const vector factor = (vector){0} + sink[0], term = (vector){0} + sink[1];
    for (int step = 0; step < steps; step++)
#pragma clang loop unroll(full)
        for (int i = 0; i < CHAINS; i++) chain[i] = chain[i] * factor + term;
    vector sum = chain[0];
    for (int i = 1; i < CHAINS; i++) sum += chain[i];
    float total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    sink[0] = 0.5f + total * 0.0f;
    return (double)steps * CHAINS * LANES;
}
