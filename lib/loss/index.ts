export type { CaptionLossOptions, CaptionTargets } from './caption';
export { captionLoss } from './caption';
export type { JointSelection, JointSelectionOptions } from './joint_selection';
export { jointSelection } from './joint_selection';
export type { SigmoidLossOptions } from './sigmoid';
export { sigmoidLoss } from './sigmoid';
export type {
  DistillationLoss,
  DistillationOptions,
  LocalViews,
  MaskedTokens,
  TeacherLogits,
  TeacherTargets,
  TemperatureWarmup,
} from './self_distillation';
export {
  CENTRE_MOMENTUM,
  distillationSizeFactors,
  distillationWeights,
  localLoss,
  maskedLoss,
  sinkhornOf,
  STUDENT_TEMPERATURE,
  TEACHER_TEMPERATURE,
  teacherTemperature,
  updateCentre,
} from './self_distillation';
