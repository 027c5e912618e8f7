import { describeOp } from './describe_op';

describeOp('l2_normalize');
