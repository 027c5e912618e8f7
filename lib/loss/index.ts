export type { SigmoidLossOptions } from './sigmoid';
export { sigmoidLoss } from './sigmoid';
