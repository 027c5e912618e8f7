import { describeOp } from './describe_op';

describeOp('layer_norm');
