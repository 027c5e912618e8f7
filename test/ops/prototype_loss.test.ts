import { describeOp } from './describe_op';

describeOp('prototype_loss');
