// Selection of a batch out of a larger one by what is left to learn (JEST, arXiv 2406.17711; ACID,
// arXiv 2411.18674). For a model with unit rows X (images) and Y (texts) of the N examples at hand
//   S = exp(t) · X Yᵀ + b
// and losses of its pairs
//   sigmoid:  l_ij = softplus(−z_ij S_ij),  z_ij = +1 where i = j, −1 elsewhere
//   softmax:  l_ii = ½ (r_i + c_i) − S_ii,  r_i = log Σ_k exp(S_ik), c_j = log Σ_k exp(S_kj): both ways
//             l_ij = −½ (log(1 − exp(S_ij − r_i)) + log(1 − exp(S_ij − c_j))): by how much r_i and c_j would
//             be less without the pair. exp(…) counts as at most 1 − 2^−12: float32 knows no better.
// a pair's score is
//   s_ij = learner_weight · l_ij(learner) + reference_weight · l_ij(reference)
// with weights (1, −1): learnability; (0, −1): what the reference finds easy; (1, 0): what the learner
// finds hard. A model of weight 0 is not looked at. No (N, N) matrix is stored. On a GPU embeddings may
// be bfloat16.
//
// log_sums (4, N): r and c of the learner, r and c of the reference. Where it is there losses are softmax,
// else sigmoid.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // *_images, *_texts (N, E), E of each model, *_scale (1) = t, *_bias (1) = b -> log_sums (4, N); zeros
    // of a model of weight 0.
    void learnability_log_sums(Stream&, In learner_images, In learner_texts, In learner_scale,
                               In learner_bias, In reference_images, In reference_texts,
                               In reference_scale, In reference_bias, double learner_weight,
                               double reference_weight, Out log_sums, Scratch);
    size_t learnability_log_sums_scratch(int threads, In learner_images, In reference_images);

    // -> diagonal (N): s_ii,  rows (N): Σ_j s_ij,  columns (N): Σ_j s_ji, those that are wanted.
    void learnability_forward(Stream&, In learner_images, In learner_texts, In learner_scale,
                              In learner_bias, In reference_images, In reference_texts,
                              In reference_scale, In reference_bias, MaybeIn log_sums,
                              double learner_weight, double reference_weight, MaybeOut diagonal,
                              MaybeOut rows, MaybeOut columns, Scratch);
    size_t learnability_forward_scratch(int threads, In learner_images, In reference_images);

    // chosen (K) int32: examples -> y (N): scores_i + Σ_{j in chosen} (s_ij + s_ji). An example's pair
    // with itself counts as a negative here: the score of a chosen example is of no use any more.
    void learnability_condition(Stream&, In learner_images, In learner_texts, In learner_scale,
                                In learner_bias, In reference_images, In reference_texts,
                                In reference_scale, In reference_bias, MaybeIn log_sums, In scores,
                                In chosen, double learner_weight, double reference_weight, Out y,
                                Scratch);
    size_t learnability_condition_scratch(int threads, In learner_images, In reference_images,
                                          In chosen);

    // Draws K of the N examples without replacement, with chances in proportion to exp(gain · scores_i),
    // from those not taken: the K largest gain · scores_i + noise_i, in falling order, of equal ones the
    // first. Where noise (N) is absent it is −ln(−ln((w_i + ½) / 2^32)) with w_i the first word of
    // Philox4x32-10 at counter (i, chunk, draw[2], draw[3]) under key (draw[0], draw[1]). NaN comes
    // behind every number, and what is taken behind all.
    // scores (N), taken (N) uint8, draw (4) int32 -> indices (K) int32, now_taken (N) uint8.
    void learnability_select(Stream&, In scores, In taken, In draw, MaybeIn noise, int64_t chunk,
                             double gain, Out indices, Out now_taken, Scratch);
    size_t learnability_select_scratch(int threads, In scores, In indices);)

}  // namespace siglip
