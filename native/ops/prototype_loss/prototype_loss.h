// Cross-entropy of two softmaxes over many prototypes, from features: the logits are computed in tiles
// of some prototypes, and computed again in the backward; neither matrix of them is ever stored.
//   s_ik = ⟨student_i, student_prototypes_k⟩      p_i = softmax_k(s_ik / τ_S)
//   t_jk = ⟨teacher_j, teacher_prototypes_k⟩      q_j = softmax_k((t_jk − centre_k) / τ_T)
//   loss = Σ_i weight_i · (lse_k(s_ik / τ_S) − Σ_k q_{r(i)k} s_ik / τ_S)
//   G_ik = dloss · weight_i · (p_ik − q_{r(i)k}) / τ_S
//   dstudent = G · student_prototypes,  dstudent_prototypes = Gᵀ · student
// r(i), `teacher_rows`, is the row of the teacher that student row i is to match: many views may share
// one. Without them it is i itself. A row outside of the teacher's is an ERR_ARGUMENT that names it; on a
// GPU, whose kernels cannot refuse what they read, it makes the loss and the gradients NaN.
//
// Sinkhorn-Knopp (arXiv 2104.14294 and DINOv2, arXiv 2304.07193) scales the rows and the columns of
// exp(t / τ_T), prototypes by examples, in turn so that all prototypes get the same share. Its last step
// divides by the sum over prototypes: what remains of it is a factor per prototype, so a centre.
#pragma once

#include "cpu/isa.h"

namespace siglip {

// Of Sinkhorn-Knopp; a few suffice.
inline constexpr int64_t kMostSinkhornIterations = 1000;

SIGLIP_FOR_EACH_TARGET(
    // student (n, F), student_prototypes (K, F), teacher (m, F), teacher_prototypes (K, F), centre (K),
    // weights (n), teacher_rows (n) int32, teacher_temperature (1)
    // -> loss (1), student_lse (n) and teacher_lse (m), the log-sum-exps for the backward.
    void prototype_loss_forward(Stream&, In student, In student_prototypes, In teacher,
                                In teacher_prototypes, In centre, In weights, MaybeIn teacher_rows,
                                In teacher_temperature, double student_temperature, Out loss,
                                Out student_lse, Out teacher_lse, Scratch);
    size_t prototype_loss_forward_scratch(int threads, In student, In teacher,
                                          In teacher_prototypes);
    // dloss (1) -> those that are wanted of dstudent (n, F) and dstudent_prototypes (K, F).
    void prototype_loss_backward(Stream&, In dloss, In student, In student_prototypes, In teacher,
                                 In teacher_prototypes, In centre, In weights, MaybeIn teacher_rows,
                                 In teacher_temperature, In student_lse, In teacher_lse,
                                 double student_temperature, MaybeOut dstudent,
                                 MaybeOut dstudent_prototypes, Scratch);
    size_t prototype_loss_backward_scratch(int threads, In student, In teacher,
                                           In teacher_prototypes);
    // teacher (m, F), prototypes (K, F), temperature (1) -> centre (K) with which
    // softmax_k((t_jk − centre_k) / τ_T) is what so many iterations of Sinkhorn-Knopp give, 1 to
    // kMostSinkhornIterations.
    void sinkhorn_centre(Stream&, In teacher, In prototypes, In temperature, int64_t iterations,
                         Out centre, Scratch);
    size_t sinkhorn_centre_scratch(int threads, In teacher, In prototypes);)

}  // namespace siglip
