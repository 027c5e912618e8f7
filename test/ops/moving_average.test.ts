import { describeOp } from './describe_op';

describeOp('moving_average');
