import { describeOp } from './describe_op';

describeOp('repeat_row');
