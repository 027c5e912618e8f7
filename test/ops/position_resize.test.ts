import { describeOp } from './describe_op';

describeOp('position_resize');
