export type { CaptionLossOptions, CaptionTargets } from './caption';
export { captionLoss } from './caption';
export type { JointSelection, JointSelectionOptions } from './joint_selection';
export { jointSelection } from './joint_selection';
export type { SigmoidLossOptions } from './sigmoid';
export { sigmoidLoss } from './sigmoid';
