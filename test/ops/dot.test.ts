import { describeOp } from './describe_op';

describeOp('dot');
