import { describeOp } from './describe_op';

describeOp('sigmoid_loss');
